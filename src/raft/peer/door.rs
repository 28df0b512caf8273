//! Those who have connected and have not shown yet who they are.
//!
//! Whoever reaches the listener can connect as often as he likes and say
//! nothing. If others waited for a place until he is sent away, he would keep
//! every member out. So nobody waits: who comes is let in at once, and where
//! there would be more than [`MAX_STRANGERS`], one of them is sent away: of the
//! origin that has most, the one that has been there longest. A member needs a
//! few round trips to show who it is; to push it out, strangers have to connect
//! from as many origins as there are places, or from its own, and to come
//! faster than that.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::handshake::{self, HandshakeError};
use super::{CONNECT_TIME, Said, Service, reason};
use crate::raft::transport::Connection;
use crate::telemetry::{Chain, events};

/// Most handshakes at a time: a handful of members need one or two each, and
/// each costs a few kilobytes, with TLS a few tens of them.
const MAX_STRANGERS: usize = 64;

/// Who has shown who it is: its id and its connection.
pub(super) type Known = (u64, Box<dyn Connection>);

/// A handshake that is under way.
struct Stranger {
    from: IpAddr,
    task: AbortHandle,
}

/// The handshakes that are under way, in the order in which they began.
pub(super) struct Door {
    service: Arc<Service>,
    said: Arc<Said>,
    strangers: Vec<Stranger>,
    handshakes: JoinSet<Option<Known>>,
}

impl Door {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            said: Arc::default(),
            strangers: Vec::new(),
            handshakes: JoinSet::new(),
        }
    }

    /// Begins the handshake with who has connected.
    pub(super) fn knock(&mut self, stream: Box<dyn Connection>, from: IpAddr) {
        if self.strangers.len() >= MAX_STRANGERS {
            self.make_room();
        }
        let (service, said) = (Arc::clone(&self.service), Arc::clone(&self.said));
        let task = self.handshakes.spawn(greet(stream, from, service, said));
        self.strangers.push(Stranger { from, task });
    }

    /// The next who has shown who it is. Never resolves while nobody is at the
    /// door; may be dropped at any time.
    pub(super) async fn next(&mut self) -> Known {
        loop {
            let (task, known) = match self.handshakes.join_next_with_id().await {
                Some(Ok((task, known))) => (task, known),
                // It was sent away.
                Some(Err(error)) => (error.id(), None),
                None => std::future::pending().await,
            };
            self.strangers.retain(|there| there.task.id() != task);
            if let Some(known) = known {
                return known;
            }
        }
    }

    fn make_room(&mut self) {
        let from: Vec<_> = self.strangers.iter().map(|there| there.from).collect();
        let Some(at) = least_welcome(&from) else {
            return;
        };
        let Stranger { from, task } = self.strangers.remove(at);
        task.abort();
        tell_refused(
            &self.said,
            from,
            "it did not show who it is while many others came",
        );
    }
}

/// Which of those who came from these addresses, in the order of their coming,
/// gives its place up.
fn least_welcome(from: &[IpAddr]) -> Option<usize> {
    let of_origin = |origin| from.iter().filter(|a| self::origin(**a) == origin).count();
    // The first of several that are equal, which has been there longest.
    let order = |at: &usize| (of_origin(origin(from[*at])), std::cmp::Reverse(*at));
    (0..from.len()).max_by_key(order)
}

/// What one machine can choose its addresses from at will.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() >> 64 << 64;
            Ipv6Addr::from_bits(network).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Finds out who that is, and tells of who is refused.
async fn greet(
    stream: Box<dyn Connection>,
    from: IpAddr,
    service: Arc<Service>,
    said: Arc<Said>,
) -> Option<Known> {
    let local = service.local();
    let greeting = async {
        let mut stream = local.accept(stream).await?;
        let id = handshake::answer(&mut stream, local).await?;
        Ok::<Known, HandshakeError>((id, stream))
    };
    let greeted = timeout(CONNECT_TIME, greeting).await;
    let too_slow = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
    match greeted.unwrap_or_else(too_slow) {
        Ok(known) => {
            said.forget(&from.to_string());
            tracing::debug!("Node {} connected from {from}", known.0);
            Some(known)
        }
        Err(error) => {
            tell_refused(&said, from, &Chain(&error).to_string());
            None
        }
    }
}

/// Tells that somebody was refused, where that is news: the port, which changes
/// each time, is left out, and others may come from the same address.
fn tell_refused(said: &Said, from: IpAddr, why: &str) {
    if said.is_news(&format!("{from} {}", reason(why)), "") {
        tracing::warn!(
            target: "aspen::raft::peer::server",
            MESSAGE_ID = events::PEER_REFUSED,
            ASPEN_PEER_ADDRESS = %from,
            "A peer at {from} was refused: {why}"
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn goes(from: &[&str]) -> Option<usize> {
        let from: Vec<_> = from.iter().map(|text| text.parse().unwrap()).collect();
        least_welcome(&from)
    }

    #[test]
    fn the_oldest_of_who_has_most_connections_makes_room() {
        assert_eq!(goes(&[]), None);
        assert_eq!(goes(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]), Some(0));
        assert_eq!(
            goes(&["10.0.0.1", "10.0.0.9", "10.0.0.2", "10.0.0.9"]),
            Some(1)
        );
        assert_eq!(
            goes(&["10.0.0.1", "::ffff:10.0.0.9", "10.0.0.2", "10.0.0.9"]),
            Some(1)
        );
        // A machine has as many addresses of its network as it likes.
        assert_eq!(
            goes(&["2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:1::2"]),
            Some(1)
        );
    }
}
