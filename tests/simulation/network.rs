//! turmoil's network, as a node uses it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use aspen::raft::{Connection, Listener, Transport};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use turmoil::net::{TcpListener, TcpStream};

#[derive(Debug)]
pub(crate) struct Simulated;

struct Listening(TcpListener);

impl Transport for Simulated {
    fn connect(&self, to: Vec<SocketAddr>) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        async move {
            let first = to.first().ok_or(io::ErrorKind::InvalidInput)?;
            let stream = TcpStream::connect(*first).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        }
        .boxed()
    }

    fn listen(&self, on: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        async move {
            // A host has one address, and takes any other for a mistake.
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, on.port())).await?;
            Ok(Box::new(Listening(listener)) as Box<dyn Listener>)
        }
        .boxed()
    }
}

impl Listener for Listening {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Connection>, SocketAddr)>> {
        async move {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as Box<dyn Connection>, from))
        }
        .boxed()
    }
}
