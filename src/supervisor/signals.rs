//! Signals, as values that the event loop waits for.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Received;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// What somebody asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Stop cleanly; the name of the signal.
    Stop(&'static str),
    /// Reload the configuration.
    Reload,
}

/// Signals received and not yet acted on.
pub(super) struct Signals(UnboundedReceiver<Signal>);

impl Signals {
    /// From now on SIGTERM, SIGINT and SIGHUP no longer end the process by themselves.
    pub(super) fn listen() -> io::Result<Self> {
        let mut received = Received::new([SIGTERM, SIGINT, SIGHUP])?;
        let (sender, receiver) = unbounded_channel();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in received.forever() {
                    let signal = match signal {
                        SIGHUP => Signal::Reload,
                        SIGINT => Signal::Stop("SIGINT"),
                        _ => Signal::Stop("SIGTERM"),
                    };
                    if sender.send(signal).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self(receiver))
    }

    /// The next signal, whenever it comes.
    pub(super) async fn next(&mut self) -> Signal {
        match self.0.recv().await {
            Some(signal) => signal,
            // The thread ends only with the process.
            None => std::future::pending().await,
        }
    }
}
