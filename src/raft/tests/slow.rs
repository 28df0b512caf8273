//! Answers that take their time.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::*;

/// How much later answers come.
const DELAY: Duration = Duration::from_millis(400);

/// Leads to `address`; what comes back takes as long as `delay` says.
async fn slow_way_back(address: String, delay: watch::Receiver<Duration>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            // The node may be away.
            if let Ok(far) = TcpStream::connect(&address).await {
                tokio::spawn(pass(near, far, delay.clone()));
            }
        }
    });
    here
}

async fn pass(mut near: TcpStream, mut far: TcpStream, delay: watch::Receiver<Duration>) {
    let (mut from_near, mut to_near) = near.split();
    let (mut from_far, mut to_far) = far.split();
    let (sender, mut on_their_way) = mpsc::unbounded_channel();
    let back = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_far.read(&mut buffer).await {
            let arrives = Instant::now() + *delay.borrow();
            if sender.send((arrives, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    let late = async {
        while let Some((arrives, bytes)) = on_their_way.recv().await {
            sleep_until(arrives).await;
            if to_near.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_near, &mut to_far) => {}
        () = back => {}
        () = late => {}
    }
}

/// A leader took the answer to an append for one to the next one, too, where that had no
/// entries and only told what was committed: of answers that took their time it thought
/// that they had been given just now, and read by a lease that was long over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_never_taken_for_younger_than_what_they_answer() {
    let mut cluster = Cluster::patient(&[Backend::Sqlite; 3]).await;
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    let delay = watch::channel(Duration::ZERO).0;
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            let address = cluster.addresses[&to].clone();
            let way = slow_way_back(address, delay.subscribe()).await;
            cluster.ways.insert((from, to), way);
        }
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    set(cluster.node(1), "key", "value").await.unwrap();
    let leader = cluster.node(cluster.leader().await).clone();
    delay.send_replace(DELAY);
    let least = u64::try_from(DELAY.as_millis()).unwrap();
    let age = {
        let leader = leader.clone();
        move || leader.status().quorum_age_ms
    };
    // What was answered before is forgotten by then.
    eventually("an old answer", || age().filter(|age| *age >= least)).await;
    let writes = tokio::spawn(async move {
        for n in 0..5 {
            set(&leader, "key", &n.to_string()).await.unwrap();
        }
    });
    while !writes.is_finished() {
        if let Some(age) = age() {
            assert!(age >= least, "an answer from {age} ms ago");
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    writes.await.unwrap();
}

/// A leader asked a follower that refused connections again as soon as it had refused, and
/// used a whole processor for it, for as long as that one was away: openraft waits between
/// two tries where the appends are taken from it, and nobody took one before there was a way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_refuses_connections_is_asked_now_and_then() {
    /// Several times what the leader's appends and heartbeats, and all of the others, need.
    const MOST: usize = 500;
    let mut cluster = Cluster::all(&[Backend::Sqlite; 3]).await;
    let away = cluster.follower().await;
    cluster.stop(away).await;
    let door = TcpListener::bind(&cluster.addresses[&away]).await.unwrap();
    let (told, asked) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((caller, _)) = door.accept().await {
            drop(caller);
            told.send_modify(|count| *count += 1);
        }
    });
    let leader = cluster.leader().await;
    set(cluster.node(leader), "key", "value").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = *asked.borrow();
    assert!((1..MOST).contains(&asked), "{asked} times");
}
