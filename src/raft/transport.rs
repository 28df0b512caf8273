//! The way to other nodes, below what they say to each other: TCP, unless a test
//! puts something else in its place.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A connection.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Makes connections.
pub trait Transport: Debug + Send + Sync {
    /// Connects to the first of these addresses that can be reached.
    ///
    /// # Errors
    /// When none can be reached.
    fn connect(&self, to: Vec<SocketAddr>) -> BoxFuture<'_, io::Result<Box<dyn Connection>>>;

    /// Listens.
    ///
    /// # Errors
    /// When the address cannot be had.
    fn listen(&self, on: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>>;
}

/// Takes connections.
pub trait Listener: Send + Sync {
    /// The next connection and where it comes from; may be dropped at any time.
    ///
    /// # Errors
    /// When the system cannot take another one at the moment.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Connection>, SocketAddr)>>;
}

/// TCP, where small messages are sent at once.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;

impl Transport for Tcp {
    fn connect(&self, to: Vec<SocketAddr>) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        async move {
            let stream = TcpStream::connect(to.as_slice()).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        }
        .boxed()
    }

    fn listen(&self, on: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        async move {
            let listener = TcpListener::bind(on).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        }
        .boxed()
    }
}

impl Listener for TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Connection>, SocketAddr)>> {
        async move {
            let (stream, from) = TcpListener::accept(self).await?;
            stream.set_nodelay(true)?;
            Ok((Box::new(stream) as Box<dyn Connection>, from))
        }
        .boxed()
    }
}
