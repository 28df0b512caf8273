//! Clients as lean as each protocol allows: one connection, one request at a
//! time, both on hyper. What a client costs is taken from the server on the
//! same machine, so neither peer is driven through more layers than the other.

pub(crate) mod aspen;
mod etcd;

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::data::Pair;
use crate::server::Peer;

/// Why a request failed; its text is all that matters.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long a server may take until it serves; a large store is recovered.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// One connection, kept alive.
pub(crate) enum Client {
    Aspen(aspen::Client),
    Etcd(etcd::Client),
}

impl Client {
    /// Connects to the server at that port of the loopback.
    pub(crate) async fn connect(peer: Peer, port: u16) -> Result<Self, Failure> {
        Ok(match peer {
            Peer::Etcd => Self::Etcd(etcd::Client::connect(port).await?),
            Peer::Sqlite | Peer::Redb => Self::Aspen(aspen::Client::connect(port).await?),
        })
    }

    /// Waits until the server serves.
    pub(crate) async fn connect_when_ready(peer: Peer, port: u16) -> Result<Self, Failure> {
        let began = Instant::now();
        loop {
            let connected = async {
                let mut client = Self::connect(peer, port).await?;
                match &mut client {
                    Self::Aspen(client) => client.ready().await?,
                    Self::Etcd(client) => drop(client.get("nothing").await?),
                }
                Ok::<_, Failure>(client)
            };
            match connected.await {
                Ok(client) => return Ok(client),
                Err(error) if began.elapsed() > READY_WITHIN => return Err(error),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Whether this server leads its cluster, as it says itself.
    pub(crate) async fn leads(&mut self) -> Result<bool, Failure> {
        match self {
            Self::Aspen(client) => client.leads().await,
            Self::Etcd(client) => client.leads().await,
        }
    }

    /// Returns once the server says that the pair is durable.
    pub(crate) async fn put(&mut self, pair: &Pair) -> Result<(), Failure> {
        match self {
            Self::Aspen(client) => client.put(pair).await,
            Self::Etcd(client) => client.put(pair).await,
        }
    }

    /// All pairs in one atomic request.
    pub(crate) async fn put_all(&mut self, pairs: &[Pair]) -> Result<(), Failure> {
        match self {
            Self::Aspen(client) => client.put_all(pairs).await,
            Self::Etcd(client) => client.put_all(pairs).await,
        }
    }

    /// The value, read linearizably; `None` where there is no such key.
    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<String>, Failure> {
        match self {
            Self::Aspen(client) => client.get(key).await,
            Self::Etcd(client) => client.get(key).await,
        }
    }
}

async fn stream(port: u16) -> Result<TokioIo<TcpStream>, Failure> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}
