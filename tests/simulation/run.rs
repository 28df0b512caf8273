//! A run: a cluster, clients, one trouble after the other, and then the judgement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use aspen::config::settings::Backend;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use turmoil::Sim;
use xxhash_rust::xxh3::xxh3_64;

use crate::chance;
use crate::clients::Clients;
use crate::clock;
use crate::disk::SimulatedDisk;
use crate::log;
use crate::machine::{Machine, Order, address, peer};
use crate::troubles::{TROUBLES, Trouble, each_pair, off};

/// What passes at once; messages take at least as long.
const TICK: Duration = Duration::from_millis(1);
/// How long a message takes at most, mostly.
const LATENCY: Duration = Duration::from_millis(12);
/// How long something may take that always happens in the end.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is simulated.
pub(crate) struct Run {
    /// For how long there is trouble.
    pub(crate) seconds: u64,
    pub(crate) lying_disks: bool,
    pub(crate) stale_reads: bool,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            seconds: 120,
            lying_disks: false,
            stale_reads: false,
        }
    }
}

/// The cluster and what is between its nodes.
pub(crate) struct World {
    pub(crate) sim: Sim<'static>,
    /// Those that have a node which is or was or will be a member.
    pub(crate) machines: BTreeMap<u64, Arc<Machine>>,
    pub(crate) dice: StdRng,
    clients: Arc<Clients>,
    next_id: u64,
    lying_disks: bool,
}

/// Has a cluster live in this process, in which everything follows from `seed`.
fn simulate(seed: u64, run: Run, live: impl FnOnce(&mut World) + Send + 'static) {
    // A thread of its own has drawn nothing yet.
    let running = std::thread::spawn(move || {
        chance::follow(seed);
        clock::set(Duration::ZERO);
        log::write();
        let mut world = World::new(seed, &run);
        world.form();
        live(&mut world);
    });
    if running.join().is_err() {
        panic!("ASPEN_TEST_SEED={seed} fails");
    }
}

/// One trouble after the other, and then the judgement.
pub(crate) fn run(seed: u64, run: Run) {
    let time = Duration::from_secs(run.seconds);
    simulate(seed, run, move |world| {
        let struck = world.trouble(time);
        world.judge();
        let seconds = world.sim.elapsed().as_secs();
        let history = &world.clients.history;
        println!(
            "\nseed {seed}: {seconds} s, {struck:?}; {}; digest {:016x}",
            history.summary(),
            xxh3_64(history.text().as_bytes())
        );
    });
}

/// How a leader goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gone {
    /// Its power is cut: connections end, and new ones are not refused either.
    Off,
    /// Nothing comes through to it any more, which its connections do not tell.
    Unplugged,
}

/// How long no write is answered when the leader is gone, `times` times.
pub(crate) fn gaps(seed: u64, times: usize, gone: Gone) -> Vec<Duration> {
    let (tell, told) = mpsc::channel();
    simulate(seed, Run::default(), move |world| {
        for _ in 0..times {
            world.until("there is no leader", |world| world.leader().is_some());
            let leader = world.leader().unwrap();
            let began = world.sim.elapsed();
            let others: Vec<_> = world.ids().into_iter().filter(|id| *id != leader).collect();
            match gone {
                Gone::Off => off(world, leader, true),
                Gone::Unplugged => each_pair(&[leader], &others, |a, b| {
                    world.sim.partition(address(a), address(b));
                }),
            }
            // What it has answered is still on its way.
            world.pass(4 * LATENCY);
            let before = world.clients.history.acknowledged();
            world.until("no write is acknowledged", |world| {
                world.clients.history.acknowledged() > before
            });
            tell.send(world.sim.elapsed() - began).unwrap();
            match gone {
                Gone::Off => world.sim.bounce(address(leader)),
                Gone::Unplugged => each_pair(&[leader], &others, |a, b| {
                    world.sim.repair(address(a), address(b));
                }),
            }
            world.pass(Duration::from_secs(8));
        }
    });
    told.iter().collect()
}

/// Fails if a task has had a thread do something: when that is done is not simulated.
fn assert_alone() {
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        // One that ends meanwhile is a checkpointing one, for which nobody waits.
        let name = std::fs::read_to_string(thread.unwrap().path().join("comm"));
        let name = name.unwrap_or_default();
        assert!(!name.starts_with("tokio"), "{name:?} works for a task");
    }
}

impl World {
    fn new(seed: u64, run: &Run) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(TICK)
            .max_message_latency(LATENCY)
            .simulation_duration(Duration::MAX)
            .tcp_capacity(4096)
            .enable_random_order();
        let clients = Clients::new(&mut dice, run.stale_reads);
        Self {
            sim: builder.build(),
            machines: BTreeMap::new(),
            dice,
            clients,
            next_id: 1,
            lying_disks: run.lying_disks,
        }
    }

    /// Three nodes, or five, of any engines.
    fn form(&mut self) {
        let count = if self.dice.random_ratio(1, 4) { 5 } else { 3 };
        let members: BTreeMap<_, _> = (1..=count).map(|id| (id, peer(id))).collect();
        for _ in 0..count {
            self.add(members.clone());
        }
        self.until("there is no leader", |world| world.leader().is_some());
    }

    /// A machine that was never there; its node joins if there are no members.
    pub(crate) fn add(&mut self, members: BTreeMap<u64, String>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let backend = match self.dice.random_range(0..4) {
            0 => Backend::Redb,
            1 => Backend::Memory,
            _ => Backend::Sqlite,
        };
        let disk = SimulatedDisk::new(self.dice.random(), self.lying_disks);
        let machine = Machine::new(id, backend, disk, members, &self.clients);
        let host = Arc::clone(&machine);
        self.sim.host(address(id), move || Arc::clone(&host).live());
        self.machines.insert(id, machine);
        id
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.machines.keys().copied().collect()
    }

    /// Who leads, as far as those that run agree.
    pub(crate) fn leader(&self) -> Option<u64> {
        let nodes = self.machines.values().filter_map(|machine| machine.node());
        let mut leaders: Vec<_> = nodes.map(|node| node.status().leader).collect();
        leaders.dedup();
        match leaders[..] {
            [Some(id)] => Some(id),
            _ => None,
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.step();
        }
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            panic!("after {:?}: {error}", self.sim.elapsed());
        }
        let now = self.sim.elapsed();
        clock::set(now);
        let now = u64::try_from(now.as_nanos()).unwrap();
        self.clients.clock.store(now, Ordering::Relaxed);
    }

    /// Goes on until `reached`.
    pub(crate) fn until(&mut self, missing: &str, mut reached: impl FnMut(&Self) -> bool) {
        let end = self.sim.elapsed() + PATIENCE;
        while !reached(self) {
            assert!(self.sim.elapsed() < end, "{missing} after {PATIENCE:?}");
            self.pass(10 * TICK);
        }
    }

    /// Has a machine do something, and waits for it.
    pub(crate) fn have(&mut self, id: u64, order: Order, missing: &str) {
        let machine = Arc::clone(&self.machines[&id]);
        let number = machine.order(order);
        self.until(missing, |_| machine.has_done(number));
    }

    fn trouble(&mut self, time: Duration) -> BTreeMap<&'static str, u32> {
        let mut struck = BTreeMap::new();
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            let Trouble { name, strike } = TROUBLES[self.dice.random_range(0..TROUBLES.len())];
            tracing::info!("Trouble at {:?}: {name}", self.sim.elapsed());
            strike(self);
            assert_alone();
            *struck.entry(name).or_default() += 1;
            let calm = self.dice.random_range(0..3000);
            self.pass(Duration::from_millis(calm));
        }
        struck
    }

    /// Every key's history must be linearizable, what was acknowledged must be there and what
    /// was refused must not, and all nodes must hold the same.
    fn judge(&mut self) {
        self.until("there is no leader", |world| world.leader().is_some());
        let before = self.clients.history.acknowledged();
        self.until("no write is acknowledged", |world| {
            world.clients.history.acknowledged() > before + 20
        });
        self.clients.stop.store(true, Ordering::Relaxed);
        let clients = Arc::clone(&self.clients);
        self.until("a request is never answered", |_| clients.rest());
        clients.give_up();
        for id in self.ids() {
            self.have(id, Order::ReadAll, "a read is never answered");
        }
        let mut contents = Vec::new();
        for id in self.ids() {
            self.have(id, Order::Digest, "a digest is never made");
            contents.push(self.machines[&id].contents().unwrap());
        }
        contents.dedup_by_key(|contents| (contents.pairs, contents.idempotency));
        assert_eq!(contents.len(), 1, "nodes hold different data: {contents:?}");
        let node = self.machines.values().find_map(|machine| machine.node());
        let node = node.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let kept = runtime.unwrap().block_on(Clients::kept(&node));
        clients.history.check_kept(&kept);
        if let Err(why) = clients.history.is_linearizable() {
            panic!("{why}");
        }
        clients.history.check_places();
    }
}
