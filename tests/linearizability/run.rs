//! A run: clients, troubles one after the other, and then the judgement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::clients::{CONTENDED, Clients, KEPT, Reads, number};
use crate::site::{Site, eventually};
use crate::troubles::Trouble;

/// Clients at a time.
const CLIENTS: u64 = 6;
/// Seconds of trouble: by default, and where everything is tried.
const SECONDS: (u64, u64) = (4, 25);
/// Acknowledged writes before the first trouble, and after the last.
const WRITES: usize = 50;

/// How long there is trouble.
fn time() -> Duration {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    match (
        number("ASPEN_TEST_SOAK_MINUTES"),
        number("ASPEN_TEST_EXHAUSTIVE"),
    ) {
        (Some(minutes), _) => Duration::from_secs(60 * minutes),
        (None, Some(1)) => Duration::from_secs(SECONDS.1),
        (None, _) => Duration::from_secs(SECONDS.0),
    }
}

/// What the choices of a run follow from: `ASPEN_TEST_SEED`, or any.
fn seed() -> u64 {
    let given = std::env::var("ASPEN_TEST_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("ASPEN_TEST_SEED={seed}");
    seed
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Has clients use a running cluster while it is in trouble, and judges it: every
/// key's history must be linearizable, what was acknowledged must be there and
/// what was refused must not, and all nodes must hold the same in the end. What
/// they hold that was not written by these clients is returned.
pub(crate) fn run(mut site: Site, troubles: &[Trouble]) -> BTreeMap<String, String> {
    let seed = seed();
    let clients = Clients::new(Arc::clone(&site.addresses));
    let mut struck = BTreeMap::<&str, u32>::new();
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            let client = clients.client(seed.wrapping_add(n + 1), Reads::Any);
            scope.spawn(move || client.run());
        }
        // Ends them also when a check fails.
        let _end = OnDrop(|| clients.stop.store(true, Ordering::Relaxed));
        writes_go_on(&clients);
        let (mut dice, began) = (StdRng::seed_from_u64(seed), Instant::now());
        for strike in 0.. {
            // Each once, then any.
            let any = dice.random_range(0..troubles.len());
            let trouble = troubles.get(strike).unwrap_or(&troubles[any]);
            (trouble.strike)(&mut site, &mut dice);
            *struck.entry(trouble.name).or_default() += 1;
            std::thread::sleep(Duration::from_millis(dice.random_range(0..500)));
            if strike + 1 >= troubles.len() && began.elapsed() >= time() {
                break;
            }
        }
        site.until_ready();
        writes_go_on(&clients);
    });
    let others = judge(&site, &clients);
    println!("{struck:?}; {}", clients.history.summary());
    for id in site.ids() {
        site.stop(id);
    }
    others
}

fn writes_go_on(clients: &Clients) {
    let before = clients.history.acknowledged();
    eventually("no write is acknowledged", || {
        (clients.history.acknowledged() > before + WRITES).then_some(())
    });
}

fn judge(site: &Site, clients: &Clients) -> BTreeMap<String, String> {
    // What was acknowledged and never read would not be missed.
    let (ids, mut reader) = (site.ids(), clients.client(0, Reads::Linearizable));
    for (key, id) in clients.history.keys().into_iter().zip(ids.iter().cycle()) {
        reader.reads_at_last(site.http(*id), key);
    }
    if let Err(why) = clients.history.is_linearizable() {
        panic!("{why}");
    }
    clients.history.check_places();
    let (mut kept, mut others) = (BTreeMap::<u32, usize>::new(), site.same_data());
    others.retain(|key, value| {
        if let Some(rest) = key.strip_prefix(KEPT) {
            let (written, _) = rest.split_once('/').unwrap();
            assert!(written.parse() == Ok(number(value)), "{key} holds {value}");
            *kept.entry(number(value)).or_default() += 1;
        }
        !key.starts_with(KEPT) && !key.starts_with(CONTENDED)
    });
    clients.history.check_kept(&kept);
    others
}
