//! This node, as its peers know it, and whom it has met.
//!
//! Each data directory has an *incarnation*, a random number made with it. Every
//! node remembers, durably, with which one it met each id, before a vote or an
//! entry goes either way; and it sees to it that it meets all members (`keeper`), so
//! that whoever has data of a cluster knows all that were up meanwhile. An id that comes back with another one has lost what
//! it promised: the votes that it gave and the entries that it confirmed. Its
//! vote could elect a leader that lacks an acknowledged write, so whoever met it
//! before refuses it, and it takes part nowhere once it has heard of that. The
//! way out is a new member with a new id.
//!
//! The same becomes of a node that lacks entries which it has confirmed to the
//! leader, because its directory was restored from an older copy of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{Mutex, watch};

use super::tls;
use crate::certificate::TlsError;
use crate::config::settings::PeerFiles;
use crate::raft::blocking::blocking;
use crate::raft::start::{self, Identity, StartError};
use crate::raft::transport::{Connection, Listener, Tcp, Transport};
use crate::storage::log::Log;
use crate::telemetry::{Chain, events};

/// Recorded in place of the incarnation of a node that has lost what it confirmed: no data has it.
const LOST: u128 = 0;

/// Most nodes that are remembered: many times what a cluster ever has.
const MOST_MET: usize = 1024;

/// This node, as its peers know it.
pub(in crate::raft) struct Local {
    id: u64,
    key: ring::hmac::Key,
    /// Whether there is a secret, which is more than that everybody knows it.
    has_secret: bool,
    tls: Option<tls::Tls>,
    transport: Arc<dyn Transport>,
    incarnation: u128,
    /// Where it is recorded what changes.
    book: Option<(Log, PathBuf)>,
    /// Held while something is recorded.
    recording: Mutex<()>,
    /// Who was found out to have lost what it confirmed, since the start.
    disowned: watch::Sender<BTreeSet<u64>>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// None until it is known; then others can be talked to.
    cluster: Option<String>,
    /// Whether the id was made from legacy data, and nobody has confirmed it.
    provisional: bool,
    /// Whether the cluster of whoever comes first is this node's.
    joins: bool,
    members_at: Option<u64>,
    members: BTreeMap<u64, String>,
    met: BTreeMap<u64, u128>,
    barred: Option<String>,
    removed_at: Option<u64>,
}

impl Local {
    /// Without a secret, everybody knows it.
    pub(in crate::raft) fn new(id: u64, secret: Option<&str>) -> Self {
        let has_secret = secret.is_some();
        let secret = secret.unwrap_or_default().as_bytes();
        Self {
            id,
            key: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret),
            has_secret,
            tls: None,
            transport: Arc::new(Tcp),
            incarnation: rand::random(),
            book: None,
            recording: Mutex::new(()),
            disowned: watch::Sender::default(),
            state: RwLock::default(),
        }
    }

    /// Takes over what the log records of this data and of others, and keeps it there.
    pub(in crate::raft) fn keep_in(&mut self, log: &Log, path: PathBuf) -> Result<(), StartError> {
        self.incarnation = start::incarnation(log)?;
        self.write().met = start::met(log, &path)?;
        self.book = Some((log.clone(), path));
        Ok(())
    }

    /// Reaches others, and is reached, by something else than TCP.
    pub(in crate::raft) fn reach_by(&mut self, transport: Arc<dyn Transport>) {
        self.transport = transport;
    }

    /// Speaks for the data of another node.
    #[cfg(test)]
    pub(in crate::raft) fn pose_as(&mut self, incarnation: u128) {
        self.incarnation = incarnation;
    }

    /// Has every connection protected. What is doubtful about the certificate
    /// comes back, one sentence each.
    pub(in crate::raft) fn protect(&mut self, files: &PeerFiles) -> Result<Vec<String>, TlsError> {
        let (tls, doubts) = tls::Tls::load(files)?;
        self.tls = Some(tls);
        Ok(doubts)
    }

    /// Reads the certificate again, for connections from now on.
    pub(in crate::raft) fn renew(&self, files: &PeerFiles) -> Result<Vec<String>, TlsError> {
        self.tls
            .as_ref()
            .map_or(Ok(Vec::new()), |tls| tls.reload(files))
    }

    pub(super) async fn connect(&self, address: &str) -> io::Result<Box<dyn Connection>> {
        let reached = tokio::net::lookup_host(address).await?;
        let protected = self.has_secret || self.tls.is_some();
        let reached: Vec<_> = reached
            .filter(|address| protected || address.ip().to_canonical().is_loopback())
            .collect();
        if reached.is_empty() {
            let why = "it is on another machine, to which nothing is said unprotected: set \
                       cluster.secret, or cluster.tls_certificate, cluster.tls_key and cluster.tls_ca";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let stream = self.transport.connect(reached).await?;
        match &self.tls {
            Some(tls) => tls.connect(stream, address).await,
            None => Ok(stream),
        }
    }

    /// Listens for other nodes.
    pub(in crate::raft) async fn listen(
        &self,
        address: SocketAddr,
    ) -> Result<Box<dyn Listener>, StartError> {
        let listen = |source| StartError::Listen { address, source };
        self.transport.listen(address).await.map_err(listen)
    }

    pub(super) async fn accept(
        &self,
        stream: Box<dyn Connection>,
    ) -> io::Result<Box<dyn Connection>> {
        match &self.tls {
            Some(tls) => tls.accept(stream).await,
            None => Ok(stream),
        }
    }

    pub(in crate::raft) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn key(&self) -> &ring::hmac::Key {
        &self.key
    }

    pub(in crate::raft) fn incarnation(&self) -> u128 {
        self.incarnation
    }

    /// The cluster's id, which is known from somewhere else than another node.
    pub(in crate::raft) fn join(&self, cluster: &str, provisional: bool) {
        let mut state = self.write();
        state.cluster = Some(cluster.to_owned());
        state.provisional = provisional;
    }

    /// From now on the first cluster whose node connects is this node's.
    pub(in crate::raft) fn wait_for_cluster(&self) {
        self.write().joins = true;
    }

    pub(in crate::raft) fn cluster(&self) -> Option<String> {
        self.read().cluster.clone()
    }

    pub(super) fn is_provisional(&self) -> bool {
        self.read().provisional
    }

    /// Whether a node without a cluster takes that of whoever connects.
    pub(super) fn joins(&self) -> bool {
        self.read().joins
    }

    /// The membership that this node knows.
    pub(in crate::raft) fn set_members(&self, at: Option<u64>, members: BTreeMap<u64, String>) {
        let mut state = self.write();
        (state.members_at, state.members) = (at, members);
    }

    pub(super) fn members_at(&self) -> Option<u64> {
        self.read().members_at
    }

    /// A member's address in the membership; empty if it is none.
    pub(super) fn address_of(&self, id: u64) -> String {
        self.read().members.get(&id).cloned().unwrap_or_default()
    }

    pub(super) fn is_member(&self, id: u64) -> bool {
        self.read().members.contains_key(&id)
    }

    /// Whether another node has said that this node's data is not what it met.
    pub(in crate::raft) fn barred(&self) -> Option<String> {
        self.read().barred.clone()
    }

    pub(super) fn bar(&self, why: &str) {
        let mut state = self.write();
        if state.barred.is_none() {
            state.barred = Some(why.to_owned());
            drop(state);
            tracing::error!(
                MESSAGE_ID = events::NODE_BARRED,
                ASPEN_MEMBER = self.id,
                "This node takes no part in the cluster: {why}"
            );
        }
    }

    /// Whether another node knows a later membership, to which this one does not belong.
    pub(in crate::raft) fn is_removed(&self) -> bool {
        let state = self.read();
        state.removed_at > state.members_at
    }

    /// Another node knows a membership to which this node does not belong.
    pub(in crate::raft) fn removed(&self, at: u64) {
        let mut state = self.write();
        let known = state.members_at.is_some() && Some(at) > state.members_at;
        if known && Some(at) > state.removed_at {
            state.removed_at = Some(at);
            drop(state);
            tracing::warn!(
                MESSAGE_ID = events::NODE_REMOVED,
                ASPEN_MEMBER = self.id,
                "This node is not a member of the cluster any more (since entry {at}); stop it, \
                 or add it again with POST /admin/members on a member"
            );
        }
    }

    /// Takes `cluster` over from another node, or has it confirmed, for ever.
    pub(super) async fn settle(&self, cluster: &str) -> Result<(), String> {
        let _recording = self.recording.lock().await;
        {
            let state = self.read();
            let settled = state.cluster.is_some() && !state.provisional;
            match &state.cluster {
                Some(ours) if settled && ours == cluster => return Ok(()),
                Some(ours) if settled => return Err(format!("this is cluster {ours}")),
                Some(ours) if ours != cluster => tracing::info!(
                    "This node knew an older membership: its cluster is {cluster}, not {ours}"
                ),
                Some(_) => {}
                None => tracing::info!("This node joins cluster {cluster}"),
            }
        }
        let identity = Identity {
            node_id: self.id,
            cluster_id: cluster.to_owned(),
            provisional: false,
        };
        self.record(move |log, path| start::record(log, &identity, path))
            .await?;
        self.join(cluster, false);
        Ok(())
    }

    /// Whether node `id` was met.
    pub(in crate::raft) fn has_met(&self, id: u64) -> bool {
        self.read().met.contains_key(&id)
    }

    /// Remembers with which data node `id` was met; why not, if it had other data before.
    pub(super) async fn meet(&self, id: u64, incarnation: u128) -> Result<(), String> {
        let _recording = self.recording.lock().await;
        let mut met = self.read().met.clone();
        match met.get(&id) {
            Some(before) if *before == incarnation => return Ok(()),
            Some(_) => {
                return Err(format!(
                    "node {id} was here before with other data, and may have forgotten votes and \
                     entries: remove it (DELETE /admin/members/{id}), and add a node with an id \
                     that was never used and an empty data directory"
                ));
            }
            None if met.len() >= MOST_MET => return Err("too many nodes were met".into()),
            None => {}
        }
        met.insert(id, incarnation);
        let recorded = met.clone();
        self.record(move |log, path| start::record_met(log, &recorded, path))
            .await?;
        self.write().met = met;
        Ok(())
    }

    /// Node `id` has lost what it confirmed: from now on, whatever it has is other data.
    pub(super) async fn disown(&self, id: u64) -> Result<(), String> {
        let recording = self.recording.lock().await;
        let mut met = self.read().met.clone();
        met.insert(id, LOST);
        let recorded = met.clone();
        self.record(move |log, path| start::record_met(log, &recorded, path))
            .await?;
        self.write().met = met;
        drop(recording);
        self.disowned.send_modify(|disowned| {
            disowned.insert(id);
        });
        Ok(())
    }

    /// Resolves once node `id` is disowned.
    pub(super) fn disowned(&self, id: u64) -> impl Future<Output = ()> + Send + 'static {
        let mut disowned = self.disowned.subscribe();
        async move {
            if disowned.wait_for(|all| all.contains(&id)).await.is_err() {
                // Nobody is left who could do it.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn record(
        &self,
        write: impl FnOnce(&Log, &std::path::Path) -> Result<(), StartError> + Send + 'static,
    ) -> Result<(), String> {
        let Some((log, path)) = self.book.clone() else {
            return Ok(());
        };
        let written = blocking(move || write(&log, &path)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Chain(&error).to_string()),
            Err(_) => Err("the node is stopping".into()),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
