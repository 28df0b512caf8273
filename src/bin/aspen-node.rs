//! `aspen-node`: one node of an Aspen cluster, run by systemd.

use std::process::ExitCode;

use aspen::exit::Exit;
use aspen::supervisor::{Arguments, run};
use clap::Parser as _;

/// Requests allocate in one thread and free in another all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => run(&arguments).into(),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            }
            .into()
        }
    }
}
