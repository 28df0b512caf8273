//! Connections from others.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use openraft::async_runtime::WatchReceiver as _;
use tokio::task::JoinSet;

use super::door::{Door, Known};
use super::linger::Lingering;
use super::{FLOW_BYTES, MAX_CONNECTIONS, MAX_STREAMS, PING_INTERVAL, PING_TIME, Service};
use crate::raft::transport::Listener;
use crate::telemetry::{Chain, events};

/// How long nobody is let in when the system cannot take another connection.
const PAUSE: Duration = Duration::from_millis(100);

/// How long until an address that could not be listened on is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Whether there is another node than `id`.
pub(in crate::raft) fn has_others<'a>(members: impl IntoIterator<Item = &'a u64>, id: u64) -> bool {
    members.into_iter().any(|member| *member != id)
}

/// Serves until it is dropped, which closes every connection. A node that has
/// no listener yet, because it is alone, gets one when it has company.
pub(in crate::raft) async fn serve(
    listener: Option<Box<dyn Listener>>,
    address: SocketAddr,
    service: Arc<Service>,
) {
    let listener = match listener {
        Some(listener) => listener,
        None => match company(address, &service).await {
            Some(listener) => listener,
            None => return,
        },
    };
    tracing::info!("Listening for other nodes on {address}");
    accept(listener.as_ref(), &service).await;
}

/// A listener once there is another member; `None` when the node stops before.
async fn company(address: SocketAddr, service: &Service) -> Option<Box<dyn Listener>> {
    let mut metrics = service.raft.server_metrics();
    loop {
        let members = metrics.borrow_watched().membership_config.clone();
        let members = members.membership().nodes().map(|(id, _)| *id);
        if has_others(&members.collect::<Vec<_>>(), service.local().id()) {
            break;
        }
        metrics.changed().await.ok()?;
    }
    loop {
        match service.local().listen(address).await {
            Ok(listener) => return Some(listener),
            Err(error) => tracing::error!(
                MESSAGE_ID = events::PEER_LISTENER_FAILED,
                ASPEN_PEER_ADDRESS = %address,
                "{}; this is tried again",
                Chain(&error)
            ),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn accept(listener: &dyn Listener, service: &Arc<Service>) {
    let mut door = Door::new(Arc::clone(service));
    let mut connections = JoinSet::new();
    let mut leaving = pin!(service.left());
    loop {
        // What has ended is forgotten.
        while connections.try_join_next().is_some() {}
        tokio::select! {
            () = &mut leaving => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => door.knock(stream, from.ip().to_canonical()),
                Err(error) => {
                    tracing::debug!("A peer could not be let in: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            known = door.next() => match connections.len() {
                0..MAX_CONNECTIONS => {
                    connections.spawn(connection(known, Arc::clone(service)));
                }
                _ => tracing::debug!("Node {} has to wait: too many connections", known.0),
            },
        }
    }
    drop(door);
    // Those that there are end by themselves; dropped, they would be cut off.
    while connections.join_next().await.is_some() {}
}

async fn connection((from, stream): Known, service: Arc<Service>) {
    // To the end, which whoever stops waits for.
    let _open = service.leaving.subscribe();
    let (left, disowned) = (service.left(), service.local().disowned(from));
    let leaving = async {
        tokio::select! {
            () = left => {}
            () = disowned => {}
        }
    };
    let answer = service_fn(move |request| Arc::clone(&service).answer(from, request));
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME)
        .initial_stream_window_size(FLOW_BYTES)
        .initial_connection_window_size(FLOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .auto_date_header(false);
    let mut serving = pin!(http.serve_connection(TokioIo::new(Lingering::new(stream)), answer));
    let served = tokio::select! {
        served = &mut serving => served,
        () = leaving => {
            // Requests that are under way end, and no others begin.
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("The connection of node {from} broke: {}", Chain(&error));
    }
}
