//! `aspen-migrate`: converts a state machine between redb and SQLite, offline.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aspen::exit::Exit;
use aspen::offline::{Arguments, run};
use clap::Parser as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            }
            .into();
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        // Without a handler the signal ends the tool at once, which is as safe.
        let _ = signal_hook::flag::register(signal, Arc::clone(&stop));
    }
    run(&arguments, stop).into()
}
