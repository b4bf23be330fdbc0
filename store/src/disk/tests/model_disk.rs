//! A model of a disk and of the system's cache before it: at a crash it forgets what was not
//! synced, in part and out of order; a sync that fails loses what it should have written and never
//! says so again; a disk can be full.

use crate::disk::layer::{Files, Look};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// What is written at once or not at all.
const SECTOR: usize = 512;

/// A small generator: the same seed gives the same run.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Cut(length) => bytes.resize(*length, 0),
            Self::Write(at, new) => put(bytes, *at, new),
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

#[derive(Clone, Debug, Default)]
struct Node {
    cache: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    reserved: usize,
}

#[derive(Clone, Debug)]
enum Naming {
    Link(String, u64),
    Unlink(String),
    Rename(String, String, u64),
}

impl Naming {
    fn make(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Link(name, id) => drop(names.insert(name.clone(), *id)),
            Self::Unlink(name) => drop(names.remove(name)),
            Self::Rename(from, to, id) => {
                names.remove(from);
                names.insert(to.clone(), *id);
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    random: Random,
    nodes: BTreeMap<u64, Node>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    namings: Vec<Naming>,
    /// Operations until everything fails.
    pub(crate) budget: Option<u64>,
    /// Chance in percent that a sync fails.
    pub(crate) sync_failures: u64,
    /// Bytes that fit.
    pub(crate) room: usize,
    /// Syncs do nothing and say that all is well.
    pub(crate) lies: bool,
    /// Whether room can be set aside.
    pub(crate) reserves: bool,
}

/// A clone is the same disk.
#[derive(Clone, Debug)]
pub(crate) struct ModelDisk(Arc<Mutex<Inner>>);

impl ModelDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            random: Random(seed),
            nodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            namings: Vec::new(),
            budget: None,
            sync_failures: 0,
            room: usize::MAX,
            reserves: true,
            lies: false,
        })))
    }

    /// A disk with these files on it.
    pub(crate) fn with(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::new(0);
        {
            let mut inner = disk.lock();
            for (id, (name, bytes)) in (0..).zip(files) {
                let (cache, durable) = (bytes.clone(), bytes.clone());
                inner.nodes.insert(id, Node { cache, durable, ..Node::default() });
                inner.names.insert(name.clone(), id);
                inner.durable_names.insert(name.clone(), id);
            }
        }
        disk
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// All files as a process sees them.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let inner = self.lock();
        let file = |(name, id): (&String, &u64)| (name.clone(), inner.nodes[id].cache.clone());
        inner.names.iter().map(file).collect()
    }

    /// The power goes, and comes back.
    pub(crate) fn crash(&self) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.budget = None;
        let random = &mut inner.random;
        for node in inner.nodes.values_mut() {
            let (keep, longer) = ([0, 50, 100][random.below(3) as usize], random.percent(30));
            for change in core::mem::take(&mut node.pending) {
                match change {
                    Change::Cut(_) if !random.percent(50) => {}
                    Change::Cut(_) => change.make(&mut node.durable),
                    Change::Write(at, bytes) => {
                        let mut from = 0;
                        while from < bytes.len() {
                            let to = bytes.len().min(from + SECTOR - (at + from) % SECTOR);
                            if random.percent(keep) {
                                put(&mut node.durable, at + from, &bytes[from..to]);
                            } else if longer && node.durable.len() < at + to {
                                node.durable.resize(at + to, 0);
                            }
                            from = to;
                        }
                    }
                }
            }
            node.cache = node.durable.clone();
        }
        // Names are changed in order, or each for itself: both happen.
        let prefix = random.percent(50).then(|| random.below(inner.namings.len() as u64 + 1));
        for (place, naming) in (0..).zip(core::mem::take(&mut inner.namings)) {
            if prefix.map_or_else(|| random.percent(50), |end| place < end) {
                naming.make(&mut inner.durable_names);
            }
        }
        inner.names = inner.durable_names.clone();
    }

    /// The process ends, the system lives on.
    pub(crate) fn restart(&self) {
        self.lock().budget = None;
    }
}

impl Inner {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn node(&mut self, name: &str) -> io::Result<&mut Node> {
        let id = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.nodes.get_mut(id).expect("names lead to files"))
    }

    fn used(&self) -> usize {
        let used = |id: &u64| self.nodes[id].cache.len().max(self.nodes[id].reserved);
        self.names.values().map(used).sum()
    }

    fn name(&mut self, naming: Naming) {
        naming.make(&mut self.names);
        self.namings.push(naming);
    }
}

impl Look for ModelDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut inner = self.lock();
        inner.spend()?;
        Ok(inner.names.keys().cloned().collect())
    }

    fn read(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut inner = self.lock();
        inner.spend()?;
        let bytes = inner.node(name)?.cache.clone();
        if bytes.len() as u64 > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }
}

impl Files for ModelDisk {
    fn create(&mut self, name: &str, room: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        let id = inner.nodes.len() as u64;
        inner.nodes.insert(id, Node::default());
        inner.name(Naming::Link(name.to_owned(), id));
        drop(inner);
        self.reserve(name, room)
    }

    fn reserve(&mut self, name: &str, room: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        if !inner.reserves {
            return Ok(());
        }
        let (used, all) = (inner.used(), inner.room);
        let node = inner.node(name)?;
        let has = node.cache.len().max(node.reserved);
        if (room as usize).saturating_sub(has) > all.saturating_sub(used) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        node.reserved = node.reserved.max(room as usize);
        Ok(())
    }

    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        let (used, all) = (inner.used(), inner.room);
        let node = inner.node(name)?;
        let has = node.cache.len().max(node.reserved);
        let fits = has.saturating_add(all.saturating_sub(used)).saturating_sub(at as usize);
        let (whole, bytes) = (bytes.len() <= fits, &bytes[..bytes.len().min(fits)]);
        let change = Change::Write(at as usize, bytes.to_vec());
        change.make(&mut node.cache);
        node.pending.push(change);
        if whole { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn cut(&mut self, name: &str, length: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        let node = inner.node(name)?;
        let change = Change::Cut(length as usize);
        change.make(&mut node.cache);
        node.pending.push(change);
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        if inner.lies {
            return Ok(());
        }
        let chance = inner.sync_failures;
        let fails = inner.random.percent(chance);
        let node = inner.node(name)?;
        let pending = core::mem::take(&mut node.pending);
        if fails {
            // What should have been written is lost, and still in the cache as if it were not.
            return Err(io::Error::other("a sync failed"));
        }
        pending.iter().for_each(|change| change.make(&mut node.durable));
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        let id = *inner.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        inner.name(Naming::Rename(from.to_owned(), to.to_owned(), id));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        if inner.names.contains_key(name) {
            inner.name(Naming::Unlink(name.to_owned()));
        }
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.spend()?;
        for naming in core::mem::take(&mut inner.namings) {
            naming.make(&mut inner.durable_names);
        }
        Ok(())
    }
}
