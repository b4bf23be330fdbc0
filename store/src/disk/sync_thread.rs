//! The edge: one thread a replica that writes and syncs what waits, all of it at once.
//!
//! While a sync runs, more comes in; the next sync is for all of that. So there are as many syncs
//! as the disk can make and no more, and each entry waits for two at most. The thread also sees to
//! it that there is room before it is needed, and notices when there is room again.

#![expect(clippy::disallowed_methods, reason = "the edge: a thread, and blocking file work")]

use super::files::Directory;
use super::format::{Identity, Record};
use super::layer::{Files, Look, is_full};
use super::recovery::latest_run;
use super::snapshot_file::{SnapshotHead, SnapshotWriter};
use super::writer::{Recovered, WriteFailure, Writer};
use super::{Counts, DiskConfig, DiskError, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, count};
use crate::transport::lock;
use core::time::Duration;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::{Notify, oneshot, watch};

/// Bytes of records that may wait; then whoever brings more waits.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// How often a full disk is looked at again.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// Called when what was handed over is on the disk, or never will be.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Job {
    records: Vec<Record>,
    /// `None`: nobody waits for it, so it need not be synced now.
    done: Option<Done>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    bytes: usize,
    closing: bool,
    /// The disk failed: why.
    failed: Option<String>,
    ended: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
    /// Jobs were taken, or the thread has ended.
    taken: Notify,
    full: watch::Sender<bool>,
    counts: Counts,
    identity: Identity,
}

/// The log of one replica. A clone is the same log.
#[derive(Clone)]
pub(crate) struct DiskLog(Arc<Shared>);

/// The snapshots of one replica.
#[derive(Clone)]
pub(crate) struct DiskSnapshots {
    /// `None` once it has been released.
    writer: Arc<Mutex<Option<SnapshotWriter<Directory>>>>,
    counts: Counts,
    closed: Arc<AtomicBool>,
}

/// A replica's files, opened.
pub(crate) struct Opened {
    pub(crate) log: DiskLog,
    pub(crate) snapshots: DiskSnapshots,
    pub(crate) recovered: Recovered,
}

/// Opens a replica's directory, reads what it holds, and starts its thread.
pub(crate) fn open(
    config: &DiskConfig,
    identity: Identity,
    counts: &Counts,
) -> Result<Opened, DiskError> {
    let DiskConfig { must_exist, segment_bytes, .. } = *config;
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
        return Err(DiskError::SegmentBytes(segment_bytes));
    }
    let path = config.shard_directory(identity.shard);
    if must_exist && !path.exists() {
        return Err(DiskError::Lost(path));
    }
    let Some(mut directory) = Directory::lock(&path)? else {
        return Err(DiskError::InUse(path));
    };
    if must_exist && latest_run(&directory.list()?).is_empty() {
        return Err(DiskError::Lost(path));
    }
    let snapshots = directory.again();
    let (writer, recovered) = Writer::open(directory, identity, segment_bytes)?;
    if recovered.torn > 0 {
        tracing::info!(shard = %identity.shard, bytes = recovered.torn, "cut a torn tail");
    }
    let writing = SnapshotWriter::new(snapshots, identity, recovered.snapshot_number);
    let log = begin(writer, identity, counts)?;
    let snapshots = DiskSnapshots {
        writer: Arc::new(Mutex::new(Some(writing))),
        counts: counts.clone(),
        closed: Arc::default(),
    };
    Ok(Opened { log, snapshots, recovered })
}

/// Starts the thread of a log.
fn begin<F: Files>(writer: Writer<F>, identity: Identity, counts: &Counts) -> io::Result<DiskLog> {
    let shared = Arc::new(Shared {
        queue: Mutex::default(),
        news: Condvar::new(),
        taken: Notify::new(),
        full: watch::Sender::new(false),
        counts: counts.clone(),
        identity,
    });
    let running = Running { shared: shared.clone(), writer, waiting: VecDeque::new() };
    std::thread::Builder::new()
        .name(format!("log-{}", identity.shard.0))
        .spawn(move || running.run())?;
    Ok(DiskLog(shared))
}

fn weight(records: &[Record]) -> usize {
    let weigh = |record: &Record| match record {
        Record::Entry(super::Entry { body: super::Body::Payload(bytes), .. }) => 64 + bytes.len(),
        _ => 64,
    };
    records.iter().map(weigh).sum()
}

fn failure(why: &str) -> io::Error {
    io::Error::other(format!("the log's disk has failed ({why}); the replica has stopped"))
}

impl DiskLog {
    /// Waits until there is room in the queue.
    pub(crate) async fn room(&self) -> io::Result<()> {
        loop {
            let taken = self.0.taken.notified();
            {
                let queue = lock(&self.0.queue);
                if let Some(why) = &queue.failed {
                    return Err(failure(why));
                }
                if queue.bytes < QUEUE_BYTES_MAX {
                    return Ok(());
                }
            }
            taken.await;
        }
    }

    /// Hands records over. `done` is called once they are on the disk, from another thread.
    pub(crate) fn put(&self, records: Vec<Record>, done: Option<Done>) {
        let mut queue = lock(&self.0.queue);
        let refusal = match (&queue.failed, queue.closing) {
            (Some(why), _) => Some(failure(why)),
            (None, true) => Some(io::Error::other("the log has been closed")),
            (None, false) => None,
        };
        if let Some(refusal) = refusal {
            drop(queue);
            if let Some(done) = done {
                done(Err(refusal));
            }
            return;
        }
        queue.bytes += weight(&records);
        queue.jobs.push_back(Job { records, done });
        drop(queue);
        self.0.news.notify_one();
    }

    /// Hands records over and waits until they are on the disk.
    pub(crate) async fn put_and_wait(&self, records: Vec<Record>) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        self.put(records, Some(Box::new(move |result| drop(done.send(result)))));
        synced.await.unwrap_or_else(|_| Err(io::Error::other("the log's thread has ended")))
    }

    /// Whether there is no room for new entries.
    pub(crate) fn is_full(&self) -> bool {
        *self.0.full.borrow()
    }

    /// Counts a refusal.
    pub(crate) fn count_refused(&self) {
        count(&self.0.counts.refused_full);
    }

    /// News of [`DiskLog::is_full`].
    pub(crate) fn watch_full(&self) -> watch::Receiver<bool> {
        self.0.full.subscribe()
    }

    /// Writes what waits, and ends the thread. The directory is free when this returns.
    pub(crate) async fn close(&self) {
        lock(&self.0.queue).closing = true;
        self.0.news.notify_one();
        loop {
            let taken = self.0.taken.notified();
            if lock(&self.0.queue).ended {
                return;
            }
            taken.await;
        }
    }
}

impl DiskSnapshots {
    /// Sets room aside; `false`, and counted, if there is not enough.
    pub(crate) async fn reserve(&self, bytes: usize) -> io::Result<bool> {
        let there = self.on_a_thread(move |writer| writer.reserve(bytes)).await?;
        if !there {
            count(&self.counts.snapshots_put_off);
        }
        Ok(there)
    }

    /// Makes this the newest snapshot, on the disk. Waits for room if need be.
    pub(crate) async fn save(&self, head: SnapshotHead, content: Arc<Vec<u8>>) -> io::Result<()> {
        let head = Arc::new(head);
        loop {
            let (head, content) = (head.clone(), content.clone());
            let saved = self.on_a_thread(move |writer| writer.save(&head, &content)).await;
            match saved {
                Err(error) if is_full(&error) && !self.closed.load(Ordering::SeqCst) => {
                    count(&self.counts.snapshots_put_off);
                    tokio::time::sleep(FULL_RETRY).await;
                }
                other => return other,
            }
        }
    }

    /// Nothing waits for room any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Lets the directory go, after what is being written.
    pub(crate) async fn release(&self) {
        let writer = self.writer.clone();
        let released = tokio::task::spawn_blocking(move || drop(lock(&writer).take()));
        if let Err(error) = released.await {
            tracing::error!(%error, "the snapshots were not closed in good order");
        }
    }

    async fn on_a_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut SnapshotWriter<Directory>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let writer = self.writer.clone();
        let done = tokio::task::spawn_blocking(move || match &mut *lock(&writer) {
            Some(writer) => work(writer),
            None => Err(io::Error::other("the snapshots have been closed")),
        });
        done.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// The thread's own.
struct Running<F> {
    shared: Arc<Shared>,
    writer: Writer<F>,
    /// Told at the next sync.
    waiting: VecDeque<Done>,
}

impl<F: Files> Running<F> {
    fn run(mut self) {
        let ended = self.serve();
        let failed = ended.err().map(|error| {
            let Identity { shard, node, .. } = self.shared.identity;
            tracing::error!(%shard, %node, %error, "the disk failed; the replica stops");
            count(&self.shared.counts.failures);
            error.to_string()
        });
        let jobs = {
            let mut queue = lock(&self.shared.queue);
            queue.closing = true;
            queue.bytes = 0;
            queue.failed = failed.clone();
            core::mem::take(&mut queue.jobs)
        };
        let why = failed.unwrap_or_else(|| "it was closed".to_owned());
        for done in self.waiting.drain(..).chain(jobs.into_iter().filter_map(|job| job.done)) {
            done(Err(failure(&why)));
        }
        let Self { shared, writer, .. } = self;
        // With it goes the directory's lock.
        drop(writer);
        lock(&shared.queue).ended = true;
        shared.taken.notify_waiters();
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut records = VecDeque::new();
        loop {
            self.keep_house()?;
            let closing = self.take(&mut records);
            match self.writer.write(&mut records) {
                Ok(()) => {}
                Err(WriteFailure::Broken(error)) => return Err(error),
                Err(WriteFailure::Full) => {
                    self.set_full(true);
                    if closing {
                        return Ok(());
                    }
                    continue;
                }
            }
            if closing {
                // The last record of a good end; without it the next start is as good.
                let mut last = VecDeque::from([Record::Closed]);
                if let Err(WriteFailure::Broken(error)) = self.writer.write(&mut last) {
                    return Err(error);
                }
            }
            if !self.waiting.is_empty() || closing {
                self.writer.sync()?;
                count(&self.shared.counts.syncs);
                self.waiting.drain(..).for_each(|done| done(Ok(())));
            }
            if closing {
                return Ok(());
            }
        }
    }

    /// Waits for jobs, or for a while if there is no room, and takes all there are. What could not
    /// be written for want of room comes first: then nothing more is taken.
    fn take(&mut self, records: &mut VecDeque<Record>) -> bool {
        let mut queue = lock(&self.shared.queue);
        let news = &self.shared.news;
        let held = !records.is_empty();
        let idle = |queue: &mut Queue| (held || queue.jobs.is_empty()) && !queue.closing;
        queue = if held || self.writer.is_short() {
            let waited = news.wait_timeout_while(queue, FULL_RETRY, idle);
            waited.unwrap_or_else(PoisonError::into_inner).0
        } else {
            news.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner)
        };
        if held {
            return queue.closing;
        }
        for job in queue.jobs.drain(..) {
            records.extend(job.records);
            self.waiting.extend(job.done);
        }
        queue.bytes = 0;
        let closing = queue.closing;
        drop(queue);
        self.shared.taken.notify_waiters();
        closing
    }

    /// Old segments go, and a spare one is had if it can be.
    fn keep_house(&mut self) -> io::Result<()> {
        self.writer.remove_old()?;
        let there = self.writer.make_spare()?;
        self.set_full(!there);
        Ok(())
    }

    fn set_full(&self, full: bool) {
        let changed =
            self.shared.full.send_if_modified(|was| core::mem::replace(was, full) != full);
        if !changed {
            return;
        }
        let (shard, counts) = (self.shared.identity.shard, &self.shared.counts);
        if full {
            count(&counts.became_full);
            tracing::warn!(%shard, "the disk is full: writes are refused until there is room");
        } else {
            count(&counts.healed);
            tracing::info!(%shard, "the disk has room again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::model_disk::ModelDisk;
    use crate::disk::tests::{WHO, entry};

    fn log(disk: &ModelDisk, counts: &Counts) -> DiskLog {
        let (writer, _) = Writer::open(disk.clone(), WHO, 4096).unwrap();
        begin(writer, WHO, counts).unwrap()
    }

    #[tokio::test]
    async fn a_failed_sync_is_the_end_and_is_not_tried_again() {
        let (disk, counts) = (ModelDisk::new(1), Counts::default());
        let log = log(&disk, &counts);
        log.put_and_wait(vec![entry(1, 0, 10)]).await.unwrap();
        disk.lock().sync_failures = 100;
        let failed = log.put_and_wait(vec![entry(1, 1, 10)]).await.unwrap_err();
        assert!(failed.to_string().contains("has failed"), "{failed}");
        // The disk would say yes now, and the entry would not be on it.
        disk.lock().sync_failures = 0;
        assert!(log.put_and_wait(vec![entry(1, 2, 10)]).await.is_err());
        assert!(log.room().await.is_err());
        assert_eq!(counts.failures.load(Ordering::Relaxed), 1);
        assert_eq!(counts.syncs.load(Ordering::Relaxed), 1);
        log.close().await;
    }

    #[tokio::test]
    async fn what_waits_for_room_is_written_when_there_is_some() {
        let (disk, counts) = (ModelDisk::new(1), Counts::default());
        disk.lock().room = 3 * 4096;
        let log = log(&disk, &counts);
        let mut index = 0;
        while !log.is_full() {
            log.put_and_wait(vec![entry(1, index, 500)]).await.unwrap();
            index += 1;
        }
        // More than the last segment takes: it waits, and nothing is lost.
        let more: Vec<Record> = (index..index + 20).map(|index| entry(1, index, 500)).collect();
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { log.put_and_wait(more).await }
        });
        let mut full = log.watch_full();
        disk.lock().room = 1 << 20;
        full.wait_for(|full| !full).await.unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(counts.healed.load(Ordering::Relaxed), 1);
        log.close().await;
        let (_, found) = Writer::open(disk, WHO, 4096).unwrap();
        assert_eq!(found.entries.len() as u64, index + 20);
    }

    #[tokio::test]
    async fn what_waits_when_a_full_log_is_closed_is_told() {
        let (disk, counts) = (ModelDisk::new(1), Counts::default());
        disk.lock().room = 2 * 4096;
        let log = log(&disk, &counts);
        let more: Vec<Record> = (0..40).map(|index| entry(1, index, 500)).collect();
        let waiting = log.put_and_wait(more);
        let close = async {
            log.watch_full().wait_for(|full| *full).await.unwrap();
            log.close().await;
        };
        let (told, ()) = futures::future::join(waiting, close).await;
        assert!(told.is_err());
        assert_eq!(counts.failures.load(Ordering::Relaxed), 0);
    }
}
