//! The packages, as operators meet them: real dpkg, real rpm and a real systemd.
//!
//! They are taken from `target/packages/dev`, where `packaging/build --profile dev` puts them; tests
//! of machines boot one each (`tests/rig`). Nothing ever answers a prompt: standard input is empty.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod contents;
mod environment;
mod host;
mod instances;
mod life;
mod made;
#[path = "../rig/mod.rs"]
mod rig;
mod rpm;
mod units;
mod upgrade;
