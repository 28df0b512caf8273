//! What can happen to a simulated cluster. Each trouble strikes, lasts a while and is
//! over: afterwards every node runs and reaches every other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use aspen::raft::MAX_VOTERS;
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;

use crate::disk::QUICK;
use crate::machine::{Order, address};
use crate::run::World;

/// How long a trouble lasts, in milliseconds: from less than a message to several elections.
const LASTS: Range<u64> = 1..5000;
/// How long a node is away that then needs a snapshot, in milliseconds.
const AWAY: Range<u64> = 8_000..20_000;
/// How long a write on a slow disk takes, in milliseconds.
const SLOW: Range<u64> = 50..1500;

#[derive(Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) name: &'static str,
    pub(crate) strike: fn(&mut World),
}

pub(crate) const TROUBLES: [Trouble; 13] = [
    Trouble {
        name: "killed",
        strike: |world| {
            let victims = some(world);
            down(world, &victims, false, LASTS);
        },
    },
    Trouble {
        name: "power cut",
        strike: |world| {
            let victims = some(world);
            down(world, &victims, true, LASTS);
        },
    },
    Trouble {
        name: "power cut of all",
        strike: |world| {
            let victims = world.ids();
            down(world, &victims, true, LASTS);
        },
    },
    Trouble {
        name: "away",
        strike: |world| {
            let victim = one(world);
            down(world, &[victim], true, AWAY);
        },
    },
    Trouble {
        name: "restarted",
        strike: |world| {
            for victim in some(world) {
                world.have(victim, Order::Stop, "a node never stops");
                off(world, victim, false);
                world.sim.bounce(address(victim));
            }
        },
    },
    // What is on its way arrives when it is over, as TCP sees to.
    Trouble {
        name: "cut off",
        strike: |world| {
            let (inside, outside) = parts(world);
            each_pair(&inside, &outside, |a, b| {
                world.sim.hold(address(a), address(b))
            });
            pass(world, LASTS);
            each_pair(&inside, &outside, |a, b| {
                world.sim.release(address(a), address(b))
            });
        },
    },
    // What is on its way is lost, and the connection with it.
    Trouble {
        name: "torn apart",
        strike: |world| {
            let (inside, outside) = parts(world);
            each_pair(&inside, &outside, |a, b| {
                world.sim.partition(address(a), address(b));
            });
            pass(world, LASTS);
            each_pair(&inside, &outside, |a, b| {
                world.sim.repair(address(a), address(b))
            });
        },
    },
    Trouble {
        name: "mute",
        strike: |world| {
            let (inside, outside) = parts(world);
            each_pair(&inside, &outside, |a, b| {
                world.sim.partition_oneway(address(a), address(b));
            });
            pass(world, LASTS);
            each_pair(&inside, &outside, |a, b| {
                world.sim.repair_oneway(address(a), address(b));
            });
        },
    },
    Trouble {
        name: "slow disks",
        strike: |world| {
            let victims = some(world);
            for victim in &victims {
                world.machines[victim].disk.takes(SLOW);
            }
            pass(world, LASTS);
            for victim in &victims {
                world.machines[victim].disk.takes(QUICK);
            }
        },
    },
    Trouble {
        name: "leadership handed on",
        strike: |world| {
            let whoever = one(world);
            world.have(whoever, Order::Transfer, "leadership is never handed on");
        },
    },
    Trouble {
        name: "cut off and killed",
        strike: |world| {
            let (inside, outside) = parts(world);
            each_pair(&inside, &outside, |a, b| {
                world.sim.hold(address(a), address(b))
            });
            let victims = some(world);
            down(world, &victims, true, LASTS);
            pass(world, LASTS);
            each_pair(&inside, &outside, |a, b| {
                world.sim.release(address(a), address(b))
            });
        },
    },
    Trouble {
        name: "replaced",
        strike: |world| {
            let old = one(world);
            replace(world, old);
        },
    },
    Trouble {
        name: "disk lost",
        strike: |world| {
            let victim = one(world);
            off(world, victim, true);
            world.machines[&victim].lose_disk();
            world.sim.bounce(address(victim));
            pass(world, LASTS);
            replace(world, victim);
        },
    },
];

fn pass(world: &mut World, time: Range<u64>) {
    let time = world.dice.random_range(time);
    world.pass(Duration::from_millis(time));
}

fn one(world: &mut World) -> u64 {
    *world.ids().choose(&mut world.dice).unwrap()
}

/// At least one node, at most all.
fn some(world: &mut World) -> Vec<u64> {
    let ids = world.ids();
    // Mostly one: more is a trouble of its own.
    let count = match world.dice.random_ratio(2, 3) {
        true => 1,
        false => world.dice.random_range(1..=ids.len()),
    };
    ids.sample(&mut world.dice, count).copied().collect()
}

/// Two parts of the cluster, neither of them empty.
fn parts(world: &mut World) -> (Vec<u64>, Vec<u64>) {
    let ids = world.ids();
    let count = world.dice.random_range(1..ids.len());
    let inside: Vec<u64> = ids.sample(&mut world.dice, count).copied().collect();
    let outside = ids.into_iter().filter(|id| !inside.contains(id)).collect();
    (inside, outside)
}

pub(crate) fn each_pair(inside: &[u64], outside: &[u64], mut act: impl FnMut(u64, u64)) {
    for a in inside {
        for b in outside {
            act(*a, *b);
        }
    }
}

/// A machine's power is cut, or only its process killed.
pub(crate) fn off(world: &mut World, victim: u64, power: bool) {
    let machine = &world.machines[&victim];
    match power {
        true => machine.disk.cut_power(),
        false => machine.disk.kill(),
    }
    machine.off();
    world.sim.crash(address(victim));
}

/// A new node takes the place of another, which is never seen again.
fn replace(world: &mut World, old: u64) {
    let new = world.add(BTreeMap::new());
    let others = world
        .ids()
        .into_iter()
        .filter(|id| ![old, new].contains(id));
    let others: Vec<_> = others.collect();
    let one = *others.choose(&mut world.dice).unwrap();
    // A cluster has five voters at most.
    if others.len() + 2 > MAX_VOTERS {
        world.have(one, Order::Remove(old), "a node never leaves");
        world.have(one, Order::Add(new), "a node never joins");
    } else {
        world.have(one, Order::Add(new), "a node never joins");
        world.have(one, Order::Remove(old), "a node never leaves");
    }
    off(world, old, false);
    world.machines.remove(&old);
}

/// Machines are off for a while.
fn down(world: &mut World, victims: &[u64], power: bool, time: Range<u64>) {
    for victim in victims {
        off(world, *victim, power);
    }
    pass(world, time);
    for victim in victims {
        world.sim.bounce(address(*victim));
    }
}
