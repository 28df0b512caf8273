//! Ways between nodes that can be cut and slowed down, one direction at a time,
//! by anybody: each node is reached through a relay, which learns from the first
//! message on a connection who is at its other end.
//!
//! A way that is cut keeps what was sent, as a network whose packets are lost
//! does: it arrives when the way is open again, unless the connection has been
//! given up by then.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use aspen::format::peer::{Hello, decode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Bytes that are passed on at once: a slow way delays each such piece.
const PIECE: usize = 16 << 10;

/// What a way is like; one that is not listed is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cut,
    Slow(Duration),
}

#[derive(Clone, Debug, Default)]
struct Ways {
    /// By where they begin and end.
    ways: BTreeMap<(u64, u64), Way>,
    /// Changes when all connections break.
    broken: u64,
}

/// All ways between all nodes; they end when it is dropped.
pub(crate) struct Links {
    runtime: Option<Runtime>,
    ways: watch::Sender<Ways>,
}

impl Links {
    pub(crate) fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        Self {
            runtime: Some(runtime),
            ways: watch::Sender::default(),
        }
    }

    /// Has whoever connects to `public` reach `real`.
    pub(crate) fn relay(&self, public: SocketAddr, real: SocketAddr) {
        let (runtime, ways) = (self.runtime.as_ref().unwrap(), self.ways.subscribe());
        let listener = runtime.block_on(TcpListener::bind(public)).unwrap();
        runtime.spawn(async move {
            loop {
                // An error is a connection that was gone before it was taken.
                if let Ok((near, _)) = listener.accept().await {
                    tokio::spawn(carry(near, real, ways.clone()));
                }
            }
        });
    }

    /// Lets nothing through from one node to another.
    pub(crate) fn cut(&self, from: u64, to: u64) {
        self.set(from, to, Way::Cut);
    }

    /// Delays whatever goes from one node to another.
    pub(crate) fn slow(&self, from: u64, to: u64, delay: Duration) {
        self.set(from, to, Way::Slow(delay));
    }

    fn set(&self, from: u64, to: u64, way: Way) {
        self.ways.send_modify(|ways| {
            ways.ways.insert((from, to), way);
        });
    }

    /// Opens all ways. What waited arrives, unless all connections break: then it is lost.
    pub(crate) fn heal(&self, connections_break: bool) {
        self.ways.send_modify(|ways| {
            ways.ways.clear();
            ways.broken += u64::from(connections_break);
        });
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A connection from its beginning to its end.
async fn carry(mut near: TcpStream, real: SocketAddr, mut ways: watch::Receiver<Ways>) {
    let broken = ways.borrow().broken;
    let open = ways.clone();
    tokio::select! {
        // Whatever ends it, both ends hear of it when this returns.
        _ = async {
            let (first, hello) = first_message(&mut near).await?;
            let (from, to) = (hello.from, hello.to);
            // A connection needs both directions.
            let (mut there, mut back) = (open.clone(), open);
            passable(&mut there, (from, to)).await?;
            passable(&mut back, (to, from)).await?;
            let mut far = TcpStream::connect(real).await?;
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            far.write_all(&first).await?;
            let (from_near, to_near) = near.split();
            let (from_far, to_far) = far.split();
            tokio::select! {
                ended = pass(from_near, to_far, there, (from, to)) => ended,
                ended = pass(from_far, to_near, back, (to, from)) => ended,
            }
        } => {}
        _ = ways.wait_for(|ways| ways.broken != broken) => {}
    }
}

/// The first message of the peer protocol, as it was sent and what it says.
async fn first_message(stream: &mut TcpStream) -> io::Result<(Vec<u8>, Hello)> {
    let length = stream.read_u16_le().await?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.resize(usize::from(length) + 2, 0);
    stream.read_exact(&mut bytes[2..]).await?;
    let hello = decode(&bytes[2..]).map_err(io::Error::other)?;
    Ok((bytes, hello))
}

/// Waits until the way is not cut; how slow it then is.
async fn passable(ways: &mut watch::Receiver<Ways>, way: (u64, u64)) -> io::Result<Duration> {
    let open = ways.wait_for(|ways| ways.ways.get(&way) != Some(&Way::Cut));
    let ways = open.await.map_err(io::Error::other)?;
    Ok(match ways.ways.get(&way) {
        Some(Way::Slow(delay)) => *delay,
        _ => Duration::ZERO,
    })
}

/// Passes on what comes; not even its end gets through while the way is cut.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut ways: watch::Receiver<Ways>,
    way: (u64, u64),
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await;
        let delay = passable(&mut ways, way).await?;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
            passable(&mut ways, way).await?;
        }
        match read? {
            0 => return Ok(()),
            length => to.write_all(&piece[..length]).await?,
        }
    }
}
