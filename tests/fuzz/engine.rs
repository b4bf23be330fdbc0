//! The loop: takes a good input, changes it, and sees that the decoder survives it.
//!
//! Every case follows from one number, so a failure is repeated by giving that number as the seed.
//! What a decoder accepts although it was changed joins the inputs that are changed further. A
//! failing input is written to a file that can be kept. Memory is bounded for the whole process:
//! whoever believes a forged length ends it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a target runs unless told otherwise.
const USUAL_MS: u64 = 2_000;
/// Address space of the process: far more than decoders need, far less than a forged length asks.
const MEMORY_MAX: u64 = 4 << 30;
/// Accepted inputs that are kept for further changes.
const POOL_MAX: usize = 256;
/// Longest input.
const INPUT_MAX: usize = 64 << 10;
/// Changes of one input at most.
const CHANGES_MAX: u64 = 6;

/// Something that reads bytes.
pub(crate) struct Target {
    /// Its name, and the directory of its inputs.
    pub(crate) name: &'static str,
    /// Makes good inputs, by file name.
    pub(crate) samples: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// They are others each time: kept as long as they are accepted.
    pub(crate) is_fresh: bool,
    /// Reads an input; whether it was accepted.
    pub(crate) read: fn(&[u8]) -> bool,
    /// Makes the checksums of a changed input fit again.
    pub(crate) seal: fn(&mut Vec<u8>),
}

/// Numbers that follow from a seed (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Less than `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

fn directory(part: &str, target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(part).join(target.name)
}

/// The files of a directory, in the order of their names; none if it is not there.
fn files(directory: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn number_of(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Sees that the kept good inputs are those that this build makes, or writes them.
pub(crate) fn kept_in_step(target: &Target) {
    let directory = directory("corpus", target);
    let kept = files(&directory);
    let is_good = !kept.is_empty() && kept.iter().all(|input| (target.read)(input));
    let samples = if target.is_fresh && is_good { Vec::new() } else { (target.samples)() };
    for (name, bytes) in samples {
        let path = directory.join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&directory).unwrap();
            fs::write(&path, bytes).unwrap();
        } else {
            let kept = fs::read(&path).unwrap_or_default();
            assert!(kept == bytes, "{} has changed: UPDATE_GOLDEN=1 writes it", path.display());
        }
    }
    let corpus = files(&directory);
    assert!(!corpus.is_empty(), "{} has no good inputs", target.name);
    for (number, input) in corpus.iter().enumerate() {
        assert!((target.read)(input), "good input {number} of {} is refused", target.name);
        let mut sealed = input.clone();
        (target.seal)(&mut sealed);
        assert!(sealed == *input, "good input {number} of {} is sealed wrongly", target.name);
    }
}

/// Runs a target for a while.
pub(crate) fn fuzz(target: &Target) {
    bound_memory();
    let mut pool = files(&directory("corpus", target));
    assert!(!pool.is_empty(), "{} has no good inputs", target.name);
    for input in files(&directory("kept", target)) {
        (target.read)(&input);
    }
    let good = pool.len();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let seed = number_of("NEARSTATE_FUZZ_SEED").unwrap_or(clock);
    let span = Duration::from_millis(number_of("NEARSTATE_FUZZ_MS").unwrap_or(USUAL_MS));
    println!("{}: NEARSTATE_FUZZ_SEED={seed}", target.name);
    let mut random = Random(seed);
    let (began, mut cases, mut accepted) = (Instant::now(), 0_u64, 0_u64);
    while began.elapsed() < span {
        let input = changed(&pool, target, &mut random);
        cases += 1;
        let read = catch_unwind(AssertUnwindSafe(|| (target.read)(&input)));
        match read {
            Ok(true) => {
                accepted += 1;
                if pool.len() < POOL_MAX {
                    pool.push(input);
                } else {
                    let place = good + random.below(POOL_MAX - good);
                    pool[place] = input;
                }
            }
            Ok(false) => {}
            Err(_) => fail(target, seed, cases, &input),
        }
    }
    println!("{}: {cases} inputs, {accepted} accepted", target.name);
    assert!(cases > 0);
}

fn fail(target: &Target, seed: u64, case: u64, input: &[u8]) -> ! {
    let name = format!("{}-{:08x}", target.name, crc32fast::hash(input));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    fs::write(&path, input).unwrap();
    panic!(
        "case {case} from NEARSTATE_FUZZ_SEED={seed} fails; the input is in {}: once it is \
         understood, keep it as tests/fuzz/kept/{}/{name}",
        path.display(),
        target.name
    );
}

/// An aborted process is a failed test.
fn bound_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let now = getrlimit(Resource::As);
        let limit = Rlimit { current: Some(MEMORY_MAX), maximum: now.maximum };
        setrlimit(Resource::As, limit).expect("a process may bound itself");
    });
}

/// One of the inputs, changed.
fn changed(pool: &[Vec<u8>], target: &Target, random: &mut Random) -> Vec<u8> {
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..=random.next() % CHANGES_MAX {
        change(&mut input, pool, random);
    }
    input.truncate(INPUT_MAX);
    // Mostly with fitting checksums: otherwise nothing behind them would ever be read.
    if !random.next().is_multiple_of(4) {
        (target.seal)(&mut input);
    }
    input
}

/// Numbers at which bounds are crossed.
const EDGES: [u64; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0xffff, 1 << 20, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];

fn change(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.extend_from_slice(&random.next().to_le_bytes());
        return;
    }
    let at = random.below(input.len());
    let length = 1 + random.below((input.len() - at).min(64));
    match random.next() % 9 {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = random.next() as u8,
        2 => {
            let width = [1, 2, 4, 8][random.below(4)].min(input.len() - at);
            let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
            input[at..at + width].copy_from_slice(&edge[..width]);
        }
        3 => {
            // A little more or less: lengths, counts, offsets.
            let by = [1, 255, 4, 252, 8][random.below(5)];
            input[at] = input[at].wrapping_add(by);
        }
        4 => drop(input.drain(at..at + length)),
        5 => {
            let piece = input[at..at + length].to_vec();
            let to = random.below(input.len());
            input.splice(to..to, piece);
        }
        6 => {
            let piece: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            input.splice(at..at, piece);
        }
        7 => input.truncate(at),
        _ => {
            let other = &pool[random.below(pool.len())];
            if !other.is_empty() {
                let from = random.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}
