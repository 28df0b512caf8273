//! What can happen to a cluster. Each trouble strikes, lasts a while and is
//! over: afterwards every node runs and reaches every other. What it does
//! follows from the dice alone.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::site::Site;

/// How long a trouble lasts, in milliseconds: from less than a heartbeat to more
/// than two elections.
const LASTS: std::ops::Range<u64> = 20..2500;

/// One kind of trouble.
#[derive(Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) name: &'static str,
    pub(crate) strike: fn(&mut Site, &mut StdRng),
}

/// `kill -9`; the node comes back.
pub(crate) const KILL: Trouble = Trouble {
    name: "kill",
    strike: |site, dice| {
        let victim = victim(site, dice);
        site.kill(victim);
        std::thread::sleep(a_while(dice));
        site.start(victim);
    },
};

/// `kill -9` of some nodes at once, of all of them at times.
pub(crate) const KILL_MANY: Trouble = Trouble {
    name: "kill many",
    strike: |site, dice| {
        let victims = some(site.ids(), dice);
        for victim in &victims {
            site.kill(*victim);
        }
        std::thread::sleep(a_while(dice));
        site.start_all();
    },
};

/// Stops in order, and starts: of one node, or of more, of all of them at times.
pub(crate) const RESTART: Trouble = Trouble {
    name: "restart",
    strike: |site, dice| {
        let victims = match dice.random_ratio(2, 3) {
            true => vec![victim(site, dice)],
            false => some(site.ids(), dice),
        };
        for victim in victims {
            site.stop(victim);
        }
        site.start_all();
    },
};

/// A node is away until the others have purged what it lacks, and gets a
/// snapshot; it is killed meanwhile, at times.
pub(crate) const AWAY: Trouble = Trouble {
    name: "away",
    strike: |site, dice| {
        let victim = victim(site, dice);
        let has = site.last_log_index(victim);
        site.kill(victim);
        site.purge_beyond(has);
        for other in site.ids() {
            site.slow(
                other,
                victim,
                Duration::from_millis(dice.random_range(1..50)),
            );
        }
        site.start(victim);
        for _ in 0..dice.random_range(0..3) {
            std::thread::sleep(a_while(dice));
            site.kill(victim);
            site.start(victim);
        }
        site.heal(dice.random());
    },
};

/// SIGSTOP: a node that is alive and does nothing, and then goes on as if
/// nothing had happened.
pub(crate) const PAUSE: Trouble = Trouble {
    name: "pause",
    strike: |site, dice| {
        let victims = match dice.random_ratio(2, 3) {
            true => vec![victim(site, dice)],
            false => some(site.ids(), dice),
        };
        for victim in &victims {
            site.signal(*victim, Signal::SIGSTOP);
        }
        std::thread::sleep(a_while(dice));
        for victim in &victims {
            site.signal(*victim, Signal::SIGCONT);
        }
    },
};

/// One node reaches no other, nor do they reach it.
pub(crate) const ISOLATE: Trouble = Trouble {
    name: "isolate",
    strike: |site, dice| {
        let victim = victim(site, dice);
        for other in site.ids() {
            site.cut(victim, other);
            site.cut(other, victim);
        }
        std::thread::sleep(a_while(dice));
        site.heal(dice.random());
    },
};

/// Some ways are cut in one direction; all that begin or end at one node, at times.
pub(crate) const CUT_ONE_WAY: Trouble = Trouble {
    name: "cut one way",
    strike: |site, dice| {
        let victim = victim(site, dice);
        let kind = dice.random_range(0..3);
        for from in site.ids() {
            for to in site.ids() {
                let cut = match kind {
                    0 => from == victim,
                    1 => to == victim,
                    _ => dice.random(),
                };
                if cut {
                    site.cut(from, to);
                }
            }
        }
        std::thread::sleep(a_while(dice));
        site.heal(dice.random());
    },
};

/// A cable is pulled: not even clients reach the node.
pub(crate) const UNPLUG: Trouble = Trouble {
    name: "unplug",
    strike: |site, dice| site.unplug(victim(site, dice), a_while(dice)),
};

/// Two parts that do not reach each other.
pub(crate) const SPLIT: Trouble = Trouble {
    name: "split",
    strike: |site, dice| {
        let part = some(site.ids(), dice);
        for from in site.ids() {
            for to in site.ids() {
                if part.contains(&from) != part.contains(&to) {
                    site.cut(from, to);
                }
            }
        }
        std::thread::sleep(a_while(dice));
        site.heal(dice.random());
    },
};

/// Some ways are slow, each as slow as it likes: mostly less than an election, and at times
/// so much that answers come when the lease that they give is long over.
pub(crate) const SLOW: Trouble = Trouble {
    name: "slow",
    strike: |site, dice| {
        for from in site.ids() {
            for to in site.ids() {
                if dice.random() {
                    let most = if dice.random_ratio(1, 3) { 1200 } else { 300 };
                    let delay = Duration::from_millis(dice.random_range(1..most));
                    site.slow(from, to, delay);
                }
            }
        }
        std::thread::sleep(a_while(dice));
        site.heal(dice.random());
    },
};

/// Disks are full, all of them at times; the node that is killed meanwhile
/// comes back when there is space.
pub(crate) const FULL_DISK: Trouble = Trouble {
    name: "full disk",
    strike: |site, dice| {
        let victims = some(site.ids(), dice);
        for victim in &victims {
            site.disk(*victim).fill();
        }
        std::thread::sleep(a_while(dice));
        let killed = dice.random_ratio(1, 3).then(|| victims[0]);
        if let Some(victim) = killed {
            site.kill(victim);
        }
        for victim in &victims {
            site.disk(*victim).free_up();
        }
        site.start_all();
    },
};

/// A clock is set, and stays wrong until it is set again.
pub(crate) const CLOCK: Trouble = Trouble {
    name: "clock",
    strike: |site, dice| {
        const DAYS: i64 = 3000;
        let seconds = 86_400 * dice.random_range(-DAYS..DAYS) + dice.random_range(0..86_400);
        let seconds = if dice.random() {
            seconds
        } else {
            seconds / 10_000
        };
        site.set_clock(victim(site, dice), seconds);
        std::thread::sleep(a_while(dice));
    },
};

/// Somebody asks for another leader, and again before the next one is used to it.
pub(crate) const TRANSFER: Trouble = Trouble {
    name: "transfer",
    strike: |site, dice| {
        for _ in 0..dice.random_range(1..5) {
            let (asked, next) = (victim(site, dice), victim(site, dice));
            site.lead(asked, next);
            std::thread::sleep(Duration::from_millis(dice.random_range(0..100)));
        }
    },
};

/// A voter comes, or goes and runs on; somebody is paused meanwhile, at times.
pub(crate) const MEMBERS: Trouble = Trouble {
    name: "members",
    strike: |site, dice| {
        let (idle, time) = (victim(site, dice), a_while(dice));
        let paused = dice.random::<bool>().then(|| site.pause_for(idle, time));
        // Three to five of them.
        let count = site.ids().len();
        let gone = if count < 4 || (count < 5 && dice.random()) {
            site.add_voter();
            None
        } else {
            let victim = victim(site, dice);
            site.remove_member(victim);
            Some(victim)
        };
        std::thread::sleep(a_while(dice));
        if let Some(paused) = paused {
            paused.join().unwrap();
        }
        if let Some(victim) = gone {
            site.forget(victim);
        }
    },
};

/// A disk is lost with all that is on it; a new node takes the place of its own.
pub(crate) const LOST_DISK: Trouble = Trouble {
    name: "lost disk",
    strike: |site, dice| {
        let victim = victim(site, dice);
        site.kill(victim);
        std::fs::remove_dir_all(site.data(victim)).unwrap();
        std::thread::sleep(a_while(dice));
        site.remove_member(victim);
        site.forget(victim);
        site.add_voter();
    },
};

/// A node goes over to the other engine: by a start to SQLite, by hand back to redb.
pub(crate) const MIGRATE: Trouble = Trouble {
    name: "migrate",
    strike: |site, dice| {
        let victim = victim(site, dice);
        match dice.random() {
            true => site.stop(victim),
            false => site.kill(victim),
        }
        site.change_engine(victim);
        site.start(victim);
    },
};

/// Nodes are killed or paused while ways are cut or slow.
pub(crate) const TOGETHER: Trouble = Trouble {
    name: "two at once",
    strike: |site, dice| {
        let victim = victim(site, dice);
        let slow = dice.random();
        for other in site.ids() {
            match slow {
                true => site.slow(other, victim, Duration::from_millis(100)),
                false => site.cut(victim, other),
            }
        }
        let others = [KILL, KILL_MANY, RESTART, PAUSE];
        let other = others[dice.random_range(0..others.len())];
        (other.strike)(site, dice);
        std::thread::sleep(a_while(dice));
        site.heal(dice.random());
    },
};

/// As long as a trouble lasts: mostly short.
pub(crate) fn a_while(dice: &mut StdRng) -> Duration {
    let most = dice.random_range(LASTS);
    Duration::from_millis(dice.random_range(0..=most))
}

/// The leader, every other time.
pub(crate) fn victim(site: &Site, dice: &mut StdRng) -> u64 {
    // Drawn in any case: the rest of the run does not depend on who leads.
    let (ids, is_leader) = (site.ids(), dice.random());
    let any = ids[dice.random_range(0..ids.len())];
    match is_leader {
        true => site.leader().unwrap_or(any),
        false => any,
    }
}

/// At least one of `ids`.
fn some(mut ids: Vec<u64>, dice: &mut StdRng) -> Vec<u64> {
    let count = dice.random_range(1..=ids.len());
    while ids.len() > count {
        ids.remove(dice.random_range(0..ids.len()));
    }
    ids
}
