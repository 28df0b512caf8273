//! Who is there, and may they.
//!
//! 1. Who connects says [`Hello`]: protocol, cluster, its id, whom it means, a nonce.
//! 2. Who listens answers with a nonce of its own, and the proof that it knows
//!    the secret: HMAC-SHA-256 over its role, the hello and its nonce.
//! 3. Who connects answers with its proof, over its role and the same.
//! 4. Who listens looks at the identities and says whether requests may follow.
//!
//! Both nonces are in both proofs, and the roles differ: no proof can be used
//! again, nor be sent back to who made it. Cluster and ids are told about only
//! to those who know the secret.
//!
//! Each message is its length as `u16`, little-endian, and its bytes.

use std::io;

use ring::hmac;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Local;
use crate::format::peer::{Challenge, Hello, PROOF, PROTOCOL, Proof, Verdict, decode, encode};
use crate::format::record::RecordError;

/// Most bytes of a message: reasons are cut to fit.
const MAX_BYTES: u16 = 1024;
/// Most characters of a reason.
const MAX_REASON: usize = 300;

const LISTENS: &[u8] = b"aspen peer, the one who listens\0";
const CONNECTS: &[u8] = b"aspen peer, the one who connects\0";

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::raft) enum HandshakeError {
    /// The connection broke, or was closed by who does not speak this at all.
    #[error("the handshake broke off")]
    Io(#[from] io::Error),
    /// A message that is none.
    #[error("what answers there is no Aspen peer")]
    Message(#[from] RecordError),
    /// The other end refuses.
    #[error("refused: {0}")]
    Refused(String),
    /// The other end is refused.
    #[error("{0}")]
    Unfit(String),
}

/// The handshake from the side that connects.
pub(super) async fn ask<S>(stream: &mut S, local: &Local, to: u64) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(why) = local.barred() {
        return Err(unfit(why));
    }
    let Some(cluster) = local.cluster() else {
        return Err(unfit("this node belongs to no cluster yet"));
    };
    let hello = Hello {
        protocol: PROTOCOL,
        cluster: cluster.clone(),
        from: local.id(),
        to,
        nonce: rand::random(),
        incarnation: local.incarnation(),
        provisional: local.is_provisional(),
        members_at: local.members_at(),
        addresses: [local.address_of(local.id()), local.address_of(to)],
    };
    let hello = encode(&hello)?;
    write_bytes(stream, &hello).await?;
    let (nonce, proof) = match read(stream).await? {
        Challenge::Prove { nonce, proof } => (nonce, proof),
        Challenge::Refused(reason) => return Err(refused(&reason)),
    };
    if hmac::verify(local.key(), &statement(LISTENS, &hello, &nonce), &proof).is_err() {
        return Err(unfit("it does not know this node's cluster.secret"));
    }
    write(stream, &prove(local.key(), CONNECTS, &hello, &nonce)).await?;
    let (incarnation, cluster) = match read(stream).await? {
        Verdict::Accepted { incarnation } => (incarnation, cluster),
        Verdict::Adopt {
            incarnation,
            cluster,
        } => (incarnation, cluster),
        Verdict::Refused(reason) => return Err(refused(&reason)),
        Verdict::Barred(reason) => {
            local.bar(&cut(&reason));
            return Err(refused(&reason));
        }
    };
    local.meet(to, incarnation).await.map_err(unfit)?;
    local.settle(&cluster).await.map_err(unfit)
}

/// The handshake from the side that listens; who connected.
pub(super) async fn answer<S>(stream: &mut S, local: &Local) -> Result<u64, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let bytes = read_bytes(stream).await?;
    if let Some(reason) = wrong_protocol(&bytes) {
        write(stream, &Challenge::Refused(reason.clone())).await?;
        return Err(unfit(reason));
    }
    let hello: Hello = decode(&bytes)?;
    let nonce = rand::random();
    let Proof(proof) = prove(local.key(), LISTENS, &bytes, &nonce);
    write(stream, &Challenge::Prove { nonce, proof }).await?;
    let Proof(proof) = read(stream).await?;
    let known = hmac::verify(local.key(), &statement(CONNECTS, &bytes, &nonce), &proof);
    let verdict = match known {
        Ok(()) => judge(&hello, local).await,
        Err(_) => Verdict::Refused("cluster.secret differs; give all nodes the same".to_owned()),
    };
    write(stream, &verdict).await?;
    match verdict {
        Verdict::Accepted { .. } | Verdict::Adopt { .. } => Ok(hello.from),
        Verdict::Refused(reason) | Verdict::Barred(reason) => Err(unfit(reason)),
    }
}

/// Looks at who that is, and remembers it.
async fn judge(hello: &Hello, local: &Local) -> Verdict {
    let cluster = match identities(hello, local) {
        Ok(cluster) => cluster,
        Err(reason) => return Verdict::Refused(reason),
    };
    if let Err(reason) = local.meet(hello.from, hello.incarnation).await {
        return Verdict::Barred(reason);
    }
    if let Err(reason) = local.settle(&cluster).await {
        return Verdict::Refused(reason);
    }
    let incarnation = local.incarnation();
    match cluster == hello.cluster {
        true => Verdict::Accepted { incarnation },
        false => Verdict::Adopt {
            incarnation,
            cluster,
        },
    }
}

/// Other versions share nothing but their first field.
fn wrong_protocol(hello: &[u8]) -> Option<String> {
    let protocol = u32::from_le_bytes(*hello.first_chunk()?);
    (protocol != PROTOCOL).then(|| {
        format!("this node speaks version {PROTOCOL} of the peer protocol, not {protocol}; run the same release on all nodes")
    })
}

/// The cluster that both belong to.
fn identities(hello: &Hello, local: &Local) -> Result<String, String> {
    if let Some(why) = local.barred() {
        return Err(why);
    }
    let cluster = match local.cluster() {
        Some(cluster) if cluster == hello.cluster => cluster,
        Some(cluster) => older_of(hello, local, cluster)?,
        None if local.joins() => hello.cluster.clone(),
        None => return Err("this node belongs to no cluster yet".into()),
    };
    if hello.to != local.id() {
        return Err(format!(
            "this is node {}, not node {}; look at the members' addresses",
            local.id(),
            hello.to
        ));
    }
    if hello.from == local.id() {
        return Err(format!(
            "this is node {} itself; ids are used once",
            local.id()
        ));
    }
    Ok(cluster)
}

/// Which of two different ids is right, of nodes that made theirs from legacy data.
///
/// Such a node makes the id from the membership that it had stored. One that was
/// behind when it was upgraded had an older one, and takes the id of whoever knew
/// a later one, or has been confirmed; but only if the two memberships agree on
/// the addresses of both nodes, which those of two clusters do not.
fn older_of(hello: &Hello, local: &Local, ours: String) -> Result<String, String> {
    let here = [local.address_of(hello.from), local.address_of(local.id())];
    let kin = here == hello.addresses && here.iter().all(|address| !address.is_empty());
    let theirs = || hello.cluster.clone();
    match (local.is_provisional(), hello.provisional) {
        (false, true) if kin => Ok(ours),
        (true, false) if kin => Ok(theirs()),
        (true, true) if kin && local.members_at() > hello.members_at => Ok(ours),
        (true, true) if kin && local.members_at() < hello.members_at => Ok(theirs()),
        _ => Err(format!(
            "this is cluster {ours}, not {}; a data directory belongs to one cluster, and nodes that \
             form one need the same cluster.initial_members",
            cut(&hello.cluster)
        )),
    }
}

fn statement(role: &[u8], hello: &[u8], nonce: &[u8; PROOF]) -> Vec<u8> {
    [role, hello, nonce].concat()
}

fn prove(key: &hmac::Key, role: &[u8], hello: &[u8], nonce: &[u8; PROOF]) -> Proof {
    let tag = hmac::sign(key, &statement(role, hello, nonce));
    let mut proof = [0; PROOF];
    proof.copy_from_slice(tag.as_ref());
    Proof(proof)
}

fn unfit(reason: impl Into<String>) -> HandshakeError {
    HandshakeError::Unfit(reason.into())
}

fn refused(reason: &str) -> HandshakeError {
    HandshakeError::Refused(cut(reason))
}

/// What somebody else says, fit for a log.
fn cut(text: &str) -> String {
    let visible = text.chars().filter(|c| !c.is_control());
    visible.take(MAX_REASON).collect()
}

async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<T, HandshakeError> {
    Ok(decode(&read_bytes(stream).await?)?)
}

async fn read_bytes(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, HandshakeError> {
    let length = stream.read_u16_le().await?;
    if length > MAX_BYTES {
        let message = format!("a message of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message).into());
    }
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), HandshakeError> {
    write_bytes(stream, &encode(message)?).await
}

async fn write_bytes(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Result<(), HandshakeError> {
    let length = u16::try_from(bytes.len()).ok().filter(|n| *n <= MAX_BYTES);
    let Some(length) = length else {
        let message = format!("a message of {} bytes", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message).into());
    };
    let framed = [&length.to_le_bytes(), bytes].concat();
    stream.write_all(&framed).await?;
    Ok(stream.flush().await?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn local(id: u64, cluster: &str, secret: Option<&str>) -> Local {
        let local = Local::new(id, secret);
        local.join(cluster, false);
        local
    }

    /// What each side makes of the other: who connects, who listens.
    async fn meet(
        asks: &Local,
        to: u64,
        answers: &Local,
    ) -> (Result<(), String>, Result<u64, String>) {
        let (mut here, mut there) = tokio::io::duplex(4096);
        let asking = async {
            let asked = ask(&mut here, asks, to).await;
            drop(here);
            asked
        };
        let answering = async {
            let answered = answer(&mut there, answers).await;
            drop(there);
            answered
        };
        let (asked, answered) = tokio::join!(asking, answering);
        let text = |error: HandshakeError| error.to_string();
        (asked.map_err(text), answered.map_err(text))
    }

    #[tokio::test]
    async fn nodes_of_one_cluster_with_one_secret_know_each_other() {
        for secret in [None, Some("a-secret-of-all-nodes")] {
            let (asks, answers) = (local(1, "c", secret), local(2, "c", secret));
            let met = meet(&asks, 2, &answers).await;
            assert_eq!(met, (Ok(()), Ok(1)));
        }
    }

    #[tokio::test]
    async fn whoever_does_not_know_the_secret_learns_nothing_but_that() {
        let secret = Some("a-secret-of-all-nodes");
        for other in [
            None,
            Some("a-secret-of-all-node"),
            Some("b-secret-of-all-nodes"),
        ] {
            let (asks, answers) = (local(1, "c", other), local(2, "d", secret));
            let (asked, answered) = meet(&asks, 2, &answers).await;
            let asked = asked.unwrap_err();
            assert!(asked.contains("does not know"), "{asked}");
            assert!(answered.unwrap_err().contains("broke off"));
        }
    }

    #[tokio::test]
    async fn another_cluster_another_node_and_oneself_are_refused_by_name() {
        let answers = local(2, "c", None);
        for (asks, to, part) in [
            (local(1, "d", None), 2, "cluster c, not d"),
            (local(1, "c", None), 3, "node 2, not node 3"),
            (local(2, "c", None), 2, "node 2 itself"),
        ] {
            let (asked, answered) = meet(&asks, to, &answers).await;
            let (asked, answered) = (asked.unwrap_err(), answered.unwrap_err());
            assert!(
                asked.starts_with("refused: ") && asked.contains(part),
                "{asked}"
            );
            assert!(answered.contains(part), "{answered}");
        }
        let (asked, _) = meet(&local(1, "c", None), 2, &Local::new(2, None)).await;
        assert!(asked.unwrap_err().contains("no cluster yet"));
    }

    /// A node that made its cluster's id from legacy data, whose membership is at `at`.
    fn legacy(id: u64, cluster: &str, at: u64, hosts: [&str; 2]) -> Local {
        let local = Local::new(id, None);
        local.join(cluster, true);
        let addresses = hosts.map(|host| format!("{host}:7000"));
        local.set_members(Some(at), (1..).zip(addresses).collect());
        local
    }

    /// A legacy node that was behind when it was upgraded made another id from the
    /// older membership that it had stored, and was refused by all others for ever.
    #[tokio::test]
    async fn a_legacy_node_that_was_behind_takes_the_id_of_who_knew_more() {
        let hosts = ["a", "b"];
        let pairs = [
            (legacy(1, "older", 3, hosts), legacy(2, "newer", 8, hosts)),
            (legacy(1, "newer", 8, hosts), legacy(2, "older", 3, hosts)),
        ];
        for (asks, answers) in pairs {
            assert_eq!(meet(&asks, 2, &answers).await, (Ok(()), Ok(1)));
            for node in [&asks, &answers] {
                assert_eq!(node.cluster().as_deref(), Some("newer"));
                assert!(!node.is_provisional());
            }
        }
        // What was confirmed counts more than what is later.
        let (asks, answers) = (legacy(1, "c", 3, hosts), legacy(2, "d", 8, hosts));
        asks.settle("c").await.unwrap();
        assert_eq!(meet(&asks, 2, &answers).await, (Ok(()), Ok(1)));
        assert_eq!(answers.cluster().as_deref(), Some("c"));
    }

    #[tokio::test]
    async fn legacy_nodes_of_two_clusters_are_not_made_one() {
        let here = || legacy(1, "c", 3, ["a", "b"]);
        for there in [
            legacy(2, "d", 8, ["x", "y"]),
            legacy(2, "d", 8, ["a", "y"]),
            legacy(2, "d", 3, ["a", "b"]),
        ] {
            let asks = here();
            let (asked, answered) = meet(&asks, 2, &there).await;
            assert!(asked.unwrap_err().contains("cluster d, not c"));
            assert!(answered.is_err());
            assert_eq!(asks.cluster().as_deref(), Some("c"));
            assert_eq!(there.cluster().as_deref(), Some("d"));
        }
    }

    #[tokio::test]
    async fn a_node_without_a_cluster_takes_that_of_who_adds_it_and_no_other_later() {
        let new = Local::new(2, None);
        new.wait_for_cluster();
        assert_eq!(meet(&local(1, "c", None), 2, &new).await, (Ok(()), Ok(1)));
        assert_eq!(new.cluster().as_deref(), Some("c"));
        let (asked, _) = meet(&local(3, "d", None), 2, &new).await;
        assert!(asked.unwrap_err().contains("cluster c, not d"));
    }

    #[tokio::test]
    async fn an_id_that_comes_back_with_other_data_is_barred() {
        let answers = local(2, "c", None);
        assert!(meet(&local(1, "c", None), 2, &answers).await.0.is_ok());
        let lost = local(1, "c", None);
        let (asked, answered) = meet(&lost, 2, &answers).await;
        assert!(asked.unwrap_err().contains("with other data"));
        assert!(answered.is_err());
        assert!(lost.barred().is_some());
        // Nor is it talked to from the other side, nor by somebody else.
        assert!(meet(&answers, 1, &lost).await.0.is_err());
        assert!(meet(&lost, 3, &local(3, "c", None)).await.0.is_err());
    }

    #[tokio::test]
    async fn a_proof_cannot_be_sent_back_to_who_made_it() {
        let answers = local(2, "c", Some("a-secret-of-all-nodes"));
        let (mut here, mut there) = tokio::io::duplex(4096);
        let mirror = async {
            let hello = Hello {
                protocol: PROTOCOL,
                cluster: "c".into(),
                from: 1,
                to: 2,
                nonce: [0; PROOF],
                incarnation: 0,
                provisional: false,
                members_at: None,
                addresses: Default::default(),
            };
            write(&mut here, &hello).await.unwrap();
            let Challenge::Prove { proof, .. } = read(&mut here).await.unwrap() else {
                panic!("refused");
            };
            write(&mut here, &Proof(proof)).await.unwrap();
            read::<Verdict>(&mut here).await.unwrap()
        };
        let (verdict, answered) = tokio::join!(mirror, answer(&mut there, &answers));
        assert!(matches!(verdict, Verdict::Refused(_)));
        assert!(answered.is_err());
    }

    #[tokio::test]
    async fn nonsense_and_other_versions_are_refused() {
        let answers = local(2, "c", None);
        let mut newer = encode(&PROTOCOL.wrapping_add(1)).unwrap();
        newer.extend([9; 50]);
        let newer_framed = [&54_u16.to_le_bytes()[..], &newer].concat();
        let http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
        for (sent, part) in [
            (newer_framed, "version 1"),
            (http, "broke off"),
            (vec![0, 0], "no Aspen peer"),
            (vec![200, 0, 1], "broke off"),
        ] {
            let (mut here, mut there) = tokio::io::duplex(4096);
            here.write_all(&sent).await.unwrap();
            here.shutdown().await.unwrap();
            let refused = answer(&mut there, &answers).await.unwrap_err().to_string();
            assert!(refused.contains(part), "{refused}");
        }
    }
}
