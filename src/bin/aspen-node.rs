//! `aspen-node`: one node of an Aspen cluster, run by systemd.

use std::process::ExitCode;

use aspen::exit::Exit;
use aspen::supervisor::{Arguments, run};
use clap::Parser as _;
use nix::sys::prctl;

/// Requests allocate in one thread and free in another all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator spreads small things over a large range, of which each huge page would be
    // filled for a few kilobytes: 20 MB more when idle. What goes on without this is slower, not wrong.
    let _ = prctl::set_thp_disable(true);
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
