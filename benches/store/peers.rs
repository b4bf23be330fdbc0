//! What others cost on the same machine in the same run: Redis and etcd, where they are installed.
//!
//! Redis: keys and values of the same sizes over a unix socket, 32 commands a write; a commit is a
//! SET that WAIT says two replicas have. That is weaker than a commit here: a replica that has it
//! may still be passed over in a failover. etcd: three members with their files on a memory disk,
//! one PUT a request over its HTTP gateway, as many clients as fit.

use crate::report::Report;
use hdrhistogram::Histogram;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PIPELINED: usize = 32;
const CLIENTS: usize = 32;
/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

const REDIS: [&str; 4] =
    ["redis_get_mops", "redis_wait2_kops", "redis_wait2_p50_us", "redis_wait2_p99_us"];
const ETCD: [&str; 3] = ["etcd_commit_kops", "etcd_commit_p50_us", "etcd_commit_p99_us"];

type Failure = Box<dyn Error>;

/// Measures the rows of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Failure> {
    if report.wants_any(&REDIS) {
        measured(report, &REDIS, redis)?;
    }
    if report.wants_any(&ETCD) {
        measured(report, &ETCD, etcd)?;
    }
    Ok(())
}

/// Runs a measurement, or says of all its rows why there is none.
fn measured(
    report: &mut Report,
    rows: &[&str],
    measure: fn(&mut Report) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Err(error) = measure(report) else { return Ok(()) };
    match error.downcast::<NotInstalled>() {
        Ok(missing) => {
            rows.iter().for_each(|row| report.skip(*row, missing.to_string()));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is not installed")]
struct NotInstalled(&'static str);

/// A process that ends when it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(program: &'static str, arguments: &[String]) -> Result<Self, Failure> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Ok(Self(child)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(NotInstalled(program).into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody uses at the moment.
fn free_port() -> Result<u16, io::Error> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Tries until it works.
fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(done) = attempt() {
            return Ok(done);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("a server did not come up in time".into())
}

/// A connection to a Redis server.
struct Redis(BufReader<UnixStream>);

impl Redis {
    fn connect(socket: &Path) -> Result<Self, Failure> {
        patiently(|| UnixStream::connect(socket).ok()).map(|stream| Self(BufReader::new(stream)))
    }

    fn send(&mut self, commands: &[u8]) -> Result<(), io::Error> {
        self.0.get_mut().write_all(commands)
    }

    /// Reads one answer, whatever it says, and gives its first line.
    fn answer(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.trim_end().to_owned();
        match line.split_at_checked(1) {
            Some(("$", length)) if length != "-1" => {
                let mut body = vec![0; length.parse::<usize>()? + 2];
                self.0.read_exact(&mut body)?;
            }
            Some(("+" | ":" | "$", _)) => {}
            _ => return Err(format!("redis says {line:?}").into()),
        }
        Ok(line)
    }
}

fn command(words: &[&str], out: &mut Vec<u8>) {
    out.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        out.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
}

/// A key as long as a flow's.
fn key(number: u64) -> String {
    format!("{number:040}")
}

fn redis(report: &mut Report) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("store-bench").tempdir_in("/dev/shm")?;
    let port = free_port()?;
    let start = |name: &str, more: &[String]| {
        let socket = dir.path().join(name);
        let words = ["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"];
        let mut arguments: Vec<String> = words.map(str::to_owned).to_vec();
        arguments.extend(["--dir".into(), dir.path().display().to_string()]);
        arguments.extend(["--unixsocket".into(), socket.display().to_string()]);
        arguments.extend_from_slice(more);
        Daemon::start("redis-server", &arguments).map(|daemon| (daemon, socket))
    };
    let (_primary, socket) = start("0.sock", &["--port".into(), port.to_string()])?;
    let mut redis = Redis::connect(&socket)?;
    let follow = ["--port", "0", "--replicaof", "127.0.0.1"].map(str::to_owned);
    let follow = [&follow[..], &[port.to_string()]].concat();
    let _replicas = (start("1.sock", &follow)?, start("2.sock", &follow)?);
    let value = "v".repeat(64);
    let (rounds, singles) = if report.quick() { (2_000, 500) } else { (20_000, 5_000) };
    // Until both replicas follow.
    let mut warm = Vec::new();
    command(&["SET", &key(0), &value], &mut warm);
    command(&["WAIT", "2", "100"], &mut warm);
    patiently(|| {
        redis.send(&warm).ok()?;
        redis.answer().ok()?;
        redis.answer().ok().filter(|both| both == ":2")
    })?;

    let set = |first: u64, count: usize| {
        let mut bytes = Vec::new();
        (first..).take(count).for_each(|n| command(&["SET", &key(n), &value], &mut bytes));
        command(&["WAIT", "2", "0"], &mut bytes);
        bytes
    };
    let kops = redis_rate(&mut redis, rounds / 4, PIPELINED + 1, |round| {
        set((round * PIPELINED) as u64, PIPELINED)
    })?;
    report.row(REDIS[1], kops * PIPELINED as f64 / (PIPELINED + 1) as f64, "kops");
    let mut times = Histogram::<u64>::new(3)?;
    for number in 0..singles {
        let (bytes, began) = (set(number, 1), Instant::now());
        redis.send(&bytes)?;
        redis.answer()?;
        redis.answer()?;
        times.record(began.elapsed().as_nanos() as u64)?;
    }
    report.row(REDIS[2], times.value_at_quantile(0.5) as f64 / 1e3, "us");
    report.row(REDIS[3], times.value_at_quantile(0.99) as f64 / 1e3, "us");
    let kops = redis_rate(&mut redis, rounds, PIPELINED, |round| {
        let (mut bytes, first) = (Vec::new(), (round % (rounds / 4)) * PIPELINED);
        (first as u64..)
            .take(PIPELINED)
            .for_each(|number| command(&["GET", &key(number)], &mut bytes));
        bytes
    })?;
    report.row(REDIS[0], kops / 1e3, "Mops");
    Ok(())
}

/// Thousands of commands a second, over rounds of so many answers each.
fn redis_rate(
    redis: &mut Redis,
    rounds: usize,
    answers: usize,
    commands: impl Fn(usize) -> Vec<u8>,
) -> Result<f64, Failure> {
    let mut took = Duration::ZERO;
    for round in 0..rounds {
        // Made before the clock runs: that is not the server's time.
        let (bytes, began) = (commands(round), Instant::now());
        redis.send(&bytes)?;
        for _ in 0..answers {
            redis.answer()?;
        }
        took += began.elapsed();
    }
    Ok((rounds * answers) as f64 / took.as_secs_f64() / 1e3)
}

/// One PUT over a connection that stays; any text of these letters is base64.
fn etcd_put(stream: &mut BufReader<TcpStream>, number: u64) -> Result<(), Failure> {
    let body = format!("{{\"key\":\"{number:052}\",\"value\":\"{}\"}}", "v".repeat(84));
    let head = format!("POST /v3/kv/put HTTP/1.1\r\nHost: e\r\nContent-Length: {}", body.len());
    stream.get_mut().write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
    let mut status = String::new();
    stream.read_line(&mut status)?;
    if !status.contains(" 200 ") {
        return Err(format!("etcd says {status:?}").into());
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse()?;
            }
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut answer = vec![0; length];
    Ok(stream.read_exact(&mut answer)?)
}

fn etcd_client(port: u16) -> Option<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_nodelay(true).ok()?;
    Some(BufReader::new(stream))
}

fn etcd(report: &mut Report) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("store-bench").tempdir_in("/dev/shm")?;
    let ports =
        [(free_port()?, free_port()?), (free_port()?, free_port()?), (free_port()?, free_port()?)];
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let members: Vec<String> =
        ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}={}", url(*peer))).collect();
    let mut daemons = Vec::new();
    for (n, (client, peer)) in ports.iter().enumerate() {
        let arguments = [
            ("--name", format!("m{n}")),
            ("--data-dir", dir.path().join(format!("m{n}")).display().to_string()),
            ("--listen-client-urls", url(*client)),
            ("--advertise-client-urls", url(*client)),
            ("--listen-peer-urls", url(*peer)),
            ("--initial-advertise-peer-urls", url(*peer)),
            ("--initial-cluster", members.join(",")),
            ("--log-level", "error".to_owned()),
        ];
        let words: Vec<String> =
            arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
        daemons.push(Daemon::start("etcd", &words)?);
    }
    let port = ports[0].0;
    let mut client = patiently(|| {
        let mut client = etcd_client(port)?;
        etcd_put(&mut client, 0).ok().map(|()| client)
    })?;
    let singles = if report.quick() { 500 } else { 5_000 };
    let mut times = Histogram::<u64>::new(3)?;
    for number in 0..singles {
        let began = Instant::now();
        etcd_put(&mut client, number)?;
        times.record(began.elapsed().as_nanos() as u64)?;
    }
    report.row(ETCD[1], times.value_at_quantile(0.5) as f64 / 1e3, "us");
    report.row(ETCD[2], times.value_at_quantile(0.99) as f64 / 1e3, "us");
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS as u64)
        .map(|n| {
            std::thread::spawn(move || {
                let mut client = etcd_client(port)?;
                (0..singles).try_for_each(|i| etcd_put(&mut client, n << 32 | i).ok())
            })
        })
        .collect();
    for client in clients {
        let done = client.join().map_err(|_| "a client panicked")?;
        done.ok_or("a client of etcd was refused")?;
    }
    let puts = CLIENTS as f64 * singles as f64;
    report.row(ETCD[0], puts / began.elapsed().as_secs_f64() / 1e3, "kops");
    Ok(())
}
