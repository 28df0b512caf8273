//! Closed loops: so many connections, each with one request at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::{Client, Failure};
use crate::common::Result;
use crate::data::{Pair, Random, Shape};
use crate::server::{Peer, Server, cpu, machine_cpu};

/// Before measuring, until connections are warm and queues are as they stay.
const WARM_UP: Duration = Duration::from_secs(1);
/// After this a request that is still under way will never be answered.
const STALLED: Duration = Duration::from_secs(60);
/// Keys in one request of the bulk load: etcd's default `--max-txn-ops`.
const BATCH: u64 = 128;
/// Connections that load.
const LOADERS: u64 = 8;
/// A server that refuses is not asked in a tight loop.
const AFTER_FAILURE: Duration = Duration::from_millis(10);
/// Puts that a connection can make before its numbers meet those of the next.
const PUTS_OF_A_CONNECTION: u64 = 1_000_000_000;
/// This process.
const DRIVER: &str = "/proc/self/stat";
const NANOS_PER_SECOND: f64 = 1e9;

/// What the connections ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Put,
    Get,
}

/// Latencies and failures.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    nanos: Histogram<u64>,
    pub(crate) failures: u64,
    first_failure: Option<String>,
}

impl Default for Latencies {
    fn default() -> Self {
        let nanos = Histogram::new(3).expect("three digits are allowed");
        Self {
            nanos,
            failures: 0,
            first_failure: None,
        }
    }
}

impl Latencies {
    fn record(&mut self, took: Duration, result: std::result::Result<(), Failure>) {
        match result {
            Ok(()) => {
                let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
                // It grows with what it is given, and 64 bits fit.
                let _ = self.nanos.record(nanos);
            }
            Err(error) => {
                self.failures += 1;
                self.first_failure.get_or_insert_with(|| error.to_string());
            }
        }
    }

    /// Takes the others in.
    pub(crate) fn add(&mut self, other: Self) {
        self.nanos += &other.nanos;
        self.add_failures(other);
    }

    /// Takes in what failed; of the rest nothing.
    fn add_failures(&mut self, other: Self) {
        self.failures += other.failures;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }

    /// Requests that succeeded.
    pub(crate) fn count(&self) -> u64 {
        self.nanos.len()
    }

    /// Seconds that `percent` of them stayed below.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        match self.count() {
            0 => f64::NAN,
            _ => self.nanos.value_at_percentile(percent) as f64 / NANOS_PER_SECOND,
        }
    }

    /// Tells the failures, if any, where people see them.
    pub(crate) fn complain(&self, of: &str) {
        if let Some(first) = &self.first_failure {
            eprintln!(
                "{of}: {} requests failed, the first: {first}",
                self.failures
            );
        }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) latencies: Latencies,
    pub(crate) seconds: f64,
    /// Processors that the server and the driver kept busy, of those there are.
    pub(crate) server_cores: f64,
    pub(crate) driver_cores: f64,
    /// And everything else on the machine: what a quiet one has little of.
    pub(crate) other_cores: f64,
}

impl Outcome {
    /// Requests that succeeded, each second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.count() as f64 / self.seconds
    }
}

/// Loads every key of `shape` and returns the keys loaded each second.
pub(crate) async fn fill(server: &Server, shape: Shape) -> Result<f64> {
    let client = Client::connect_when_ready(server.peer, server.port).await;
    drop(client.map_err(|error| server.blame(error))?);
    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut loaders = JoinSet::new();
    for _ in 0..LOADERS {
        let (next, peer, port) = (Arc::clone(&next), server.peer, server.port);
        loaders.spawn(async move {
            let mut client = Client::connect(peer, port).await?;
            loop {
                let first = next.fetch_add(BATCH, Ordering::Relaxed);
                let last = shape.keys.min(first.saturating_add(BATCH));
                let pairs: Vec<Pair> = (first..last).map(|id| shape.pair(id, 0)).collect();
                if pairs.is_empty() {
                    return Ok::<_, Failure>(());
                }
                timeout(STALLED, client.put_all(&pairs)).await??;
            }
        });
    }
    while let Some(loader) = loaders.join_next().await {
        loader?.map_err(|error| server.blame(format!("bulk load: {error}")))?;
    }
    Ok(shape.keys as f64 / began.elapsed().as_secs_f64())
}

/// Measures for `time` what happens when `connections`, spread over the servers
/// `asked`, ask for random keys. `all` are those of the cluster.
pub(crate) async fn measure(
    asked: &[&Server],
    all: &[&Server],
    shape: Shape,
    request: Request,
    connections: u64,
    time: Duration,
) -> Result<Outcome> {
    // Nothing is kept of the warm-up.
    let window = Arc::new(Windows::new(2));
    let mut load = Load::start(asked, shape, request, connections, Arc::clone(&window)).await?;
    sleep(WARM_UP).await;
    let began = Instant::now();
    let used = || {
        let servers: Result<f64> = all.iter().map(|server| server.cpu()).sum();
        Ok::<_, Box<dyn std::error::Error>>([servers?, cpu(DRIVER.as_ref())?, machine_cpu()?])
    };
    let before = used()?;
    window.switch_to(1);
    sleep(time).await;
    let after = used()?;
    let elapsed = began.elapsed().as_secs_f64();
    let cores = |of: usize| (after[of] - before[of]) / elapsed;
    window.end();
    let mut windows = load.join(asked[0]).await?;
    let mut latencies = windows.swap_remove(1);
    latencies.add_failures(windows.swap_remove(0));
    latencies.complain(&format!("{}, {request:?}", asked[0].peer.name()));
    Ok(Outcome {
        latencies,
        seconds: elapsed,
        server_cores: cores(0),
        driver_cores: cores(1),
        other_cores: (cores(2) - cores(0) - cores(1)).max(0.0),
    })
}

/// Tells which histogram a request belongs to while the load goes on.
pub(crate) struct Windows {
    now: AtomicU8,
    count: u8,
    began: Instant,
    /// When anything was acknowledged last, and the longest time between two
    /// such moments since the last switch; nanoseconds.
    acknowledged: AtomicU64,
    gap: AtomicU64,
}

impl Windows {
    const ENDED: u8 = u8::MAX;

    /// `count` of them; the first is open.
    pub(crate) fn new(count: u8) -> Self {
        Self {
            now: AtomicU8::new(0),
            count,
            began: Instant::now(),
            acknowledged: AtomicU64::new(0),
            gap: AtomicU64::new(0),
        }
    }

    pub(crate) fn switch_to(&self, window: u8) {
        assert!(window < self.count, "no such window");
        self.now.store(window, Ordering::SeqCst);
        self.gap.store(0, Ordering::SeqCst);
    }

    /// The longest time since the last switch in which nothing was
    /// acknowledged, to anybody.
    pub(crate) fn gap(&self) -> Duration {
        // One that has not ended yet counts too.
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        let waiting = self.now_nanos().saturating_sub(acknowledged);
        Duration::from_nanos(self.gap.load(Ordering::SeqCst).max(waiting))
    }

    fn now_nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn acknowledge(&self) {
        let now = self.now_nanos();
        let before = self.acknowledged.fetch_max(now, Ordering::SeqCst);
        self.gap
            .fetch_max(now.saturating_sub(before), Ordering::SeqCst);
    }

    /// Requests under way are finished and counted, then the load ends.
    pub(crate) fn end(&self) {
        self.now.store(Self::ENDED, Ordering::SeqCst);
    }

    fn now(&self) -> u8 {
        self.now.load(Ordering::SeqCst)
    }
}

/// Connections at work.
pub(crate) struct Load(JoinSet<std::result::Result<Vec<Latencies>, Failure>>);

impl Load {
    /// Connects, to the servers in turn, and begins.
    pub(crate) async fn start(
        servers: &[&Server],
        shape: Shape,
        request: Request,
        connections: u64,
        windows: Arc<Windows>,
    ) -> Result<Self> {
        let mut tasks = JoinSet::new();
        for (number, server) in (0..connections).zip(servers.iter().cycle()) {
            let client = Client::connect_when_ready(server.peer, server.port).await;
            let connection = Connection {
                client: client.map_err(|error| server.blame(error))?,
                peer: server.peer,
                port: server.port,
                number,
                shape,
                request,
            };
            tasks.spawn(connection.run(Arc::clone(&windows)));
        }
        Ok(Self(tasks))
    }

    /// The latencies of each window, once it has ended.
    pub(crate) async fn join(&mut self, server: &Server) -> Result<Vec<Latencies>> {
        let mut all: Vec<Latencies> = Vec::new();
        let join = async {
            while let Some(task) = self.0.join_next().await {
                let windows = task??;
                all.resize_with(windows.len(), Latencies::default);
                for (sum, window) in all.iter_mut().zip(windows) {
                    sum.add(window);
                }
            }
            Ok::<_, Failure>(())
        };
        match timeout(STALLED, join).await {
            Ok(Ok(())) => Ok(all),
            Ok(Err(error)) => Err(server.blame(error).into()),
            Err(_) => Err(server.blame("leaves requests unanswered").into()),
        }
    }
}

struct Connection {
    client: Client,
    peer: Peer,
    port: u16,
    number: u64,
    shape: Shape,
    request: Request,
}

impl Connection {
    /// A request counts where it began, and where it ended too if that is
    /// another window: what a disturbance makes wait is seen in it.
    async fn run(mut self, windows: Arc<Windows>) -> std::result::Result<Vec<Latencies>, Failure> {
        let mut all = vec![Latencies::default(); windows.count.into()];
        let mut random = Random(self.number);
        let mut put = (self.number + 1) * PUTS_OF_A_CONNECTION;
        loop {
            let window = windows.now();
            if window == Windows::ENDED {
                return Ok(all);
            }
            let id = random.next() % self.shape.keys;
            put += 1;
            let (took, result) = self.one(id, put).await;
            let failed = result.is_err();
            if !failed {
                windows.acknowledge();
            }
            let then = windows.now();
            // The warm-up and what lies between disturbances keep no tails.
            if then != window && then != 0 && then != Windows::ENDED && !failed {
                all[usize::from(then)].record(took, Ok(()));
            }
            all[usize::from(window)].record(took, result);
            if failed {
                sleep(AFTER_FAILURE).await;
                // A server that is gone fails the next request too.
                if let Ok(client) = Client::connect(self.peer, self.port).await {
                    self.client = client;
                }
            }
        }
    }

    async fn one(&mut self, id: u64, put: u64) -> (Duration, std::result::Result<(), Failure>) {
        match self.request {
            Request::Put => {
                let pair = self.shape.pair(id, put);
                let began = Instant::now();
                let result = self.client.put(&pair).await;
                (began.elapsed(), result)
            }
            Request::Get => {
                let key = self.shape.key(id);
                let began = Instant::now();
                let found = self.client.get(&key).await;
                let took = began.elapsed();
                let right = found.and_then(|value| self.shape.check(id, value.as_deref()));
                (took, right)
            }
        }
    }
}
