//! The journal's thread: takes entries from a bounded queue and writes them in batches.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;
use pawlatch_core::door::JournalHealth;

use super::{Entry, JournalSettings, Note, Recorder, Stamped, Store};
use crate::clock::Clock;
use crate::ordeal::panic_if_asked;

/// Entries that may wait to be written.
pub const QUEUE: usize = 1_024;
/// Pictures that may wait to be written: they are large.
const PICTURES: usize = 16;
/// Notes that may wait to be written.
const NOTES: usize = 64;
/// Entries written in one transaction.
const BATCH: usize = 64;
/// How long to wait after a failed write before the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// A write that takes longer than this counts as failed until it is over.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// Whether the last write succeeded.
    writable: AtomicBool,
    /// When the write that is going on began, milliseconds of uptime plus one; 0: none.
    busy_since: AtomicU64,
    acknowledged: AtomicU64,
    lost: AtomicU64,
    pictures: AtomicUsize,
    notes: AtomicUsize,
}

/// What the thread is told.
#[derive(Debug)]
enum Message {
    Entry(Stamped),
    /// Answer when everything before this is on the disk.
    Flush(SyncSender<()>),
}

/// The journal, written by a thread of its own. Dropped, it writes what waits, then ends.
#[derive(Debug)]
pub struct Journal {
    queue: Option<Arc<SyncSender<Message>>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    /// Starts the thread, which opens the journal; until it has, the journal is not writable.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(settings: JournalSettings, clock: Clock) -> std::io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE);
        let shared = Arc::new(Shared {
            clock,
            writable: AtomicBool::new(false),
            busy_since: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            pictures: AtomicUsize::new(0),
            notes: AtomicUsize::new(0),
        });
        let mut writer = Writer {
            settings,
            store: None,
            pending: Vec::new(),
            waiting: Vec::new(),
            shared: Arc::clone(&shared),
        };
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&messages))?;
        Ok(Self { queue: Some(Arc::new(queue)), shared, thread: Some(thread) })
    }

    /// Entries that would survive the loss of power, counted since the start, in the order they
    /// were recorded.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Whether anything can still be recorded; a disk that refuses is no end, a panic is.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// A way to record what the owner's surfaces have to say.
    pub fn scribe(&self) -> Scribe {
        let queue = self.queue.as_ref().map_or_else(Weak::new, Arc::downgrade);
        Scribe { queue, shared: Arc::clone(&self.shared) }
    }

    /// Waits until everything recorded before is on the disk; whether that came about within
    /// `patience`.
    pub fn flush(&self, patience: Duration) -> bool {
        let (answer, answered) = sync_channel(1);
        let asked = self.queue.as_ref().map(|queue| queue.try_send(Message::Flush(answer)));
        matches!(asked, Some(Ok(()))) && answered.recv_timeout(patience).is_ok()
    }
}

/// Hands notes to the journal. Clones share its queue; they do not keep the journal open.
#[derive(Debug, Clone)]
pub struct Scribe {
    queue: Weak<SyncSender<Message>>,
    shared: Arc<Shared>,
}

impl Scribe {
    /// Takes `note` over; never waits. Returns whether it will be recorded: not when the journal
    /// is closed or too many notes wait already, so that they never crowd out the door's entries.
    pub fn record(&self, note: Note) -> bool {
        let Some(queue) = self.queue.upgrade() else { return false };
        let waiting = &self.shared.notes;
        if waiting.fetch_add(1, Ordering::SeqCst) >= NOTES {
            waiting.fetch_sub(1, Ordering::SeqCst);
            return false;
        }
        let entry = Entry::Note(note);
        let sent = queue.try_send(Message::Entry(Stamped { entry, wall: Timestamp::now() }));
        if sent.is_err() {
            waiting.fetch_sub(1, Ordering::SeqCst);
        }
        sent.is_ok()
    }
}

impl Recorder for Journal {
    fn record(&mut self, entry: Entry) {
        let shared = &self.shared;
        let is_picture = matches!(entry, Entry::Picture(_));
        if is_picture && shared.pictures.load(Ordering::SeqCst) >= PICTURES {
            shared.lost.fetch_add(1, Ordering::SeqCst);
            return;
        }
        let message = Message::Entry(Stamped { entry, wall: Timestamp::now() });
        let sent = self.queue.as_ref().map(|queue| queue.try_send(message));
        match sent {
            Some(Ok(())) => {
                shared.pictures.fetch_add(usize::from(is_picture), Ordering::SeqCst);
            }
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => {
                shared.lost.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn health(&self) -> JournalHealth {
        let shared = &self.shared;
        let since = shared.busy_since.load(Ordering::SeqCst);
        let stuck = since > 0
            && shared.clock.now().as_millis().saturating_sub(since) > PATIENCE.as_millis() as u64;
        let alive = self.is_alive();
        let losing = shared.lost.load(Ordering::SeqCst) > 0;
        if alive && !stuck && !losing && shared.writable.load(Ordering::SeqCst) {
            JournalHealth::Writable
        } else {
            JournalHealth::Failed
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's side.
struct Writer {
    settings: JournalSettings,
    store: Option<Store>,
    pending: Vec<Stamped>,
    waiting: Vec<SyncSender<()>>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        loop {
            panic_if_asked("journal");
            let wrote = self.write();
            let open = if wrote { self.take(messages) } else { self.bide(messages) };
            if !open {
                break;
            }
        }
        // Nobody listens any more: one last attempt.
        if !self.write() && !self.pending.is_empty() {
            tracing::error!(lost = self.pending.len(), "the last entries could not be recorded");
        }
    }

    /// Waits a while for entries, then takes as many as there are. Returns whether more can come.
    fn take(&mut self, messages: &Receiver<Message>) -> bool {
        match messages.recv_timeout(RETRY) {
            Ok(first) => self.accept(first),
            // Nothing to do, unless there is a gap to be written down.
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        while self.pending.len() < BATCH {
            match messages.try_recv() {
                Ok(message) => self.accept(message),
                Err(_) => break,
            }
        }
        true
    }

    /// Waits before the next attempt. What comes meanwhile stays in the queue, whose limit
    /// holds. Returns whether more can come.
    fn bide(&mut self, messages: &Receiver<Message>) -> bool {
        if self.pending.len() >= BATCH {
            thread::sleep(RETRY);
            return true;
        }
        match messages.recv_timeout(RETRY) {
            Ok(message) => self.accept(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    fn accept(&mut self, message: Message) {
        match message {
            Message::Entry(stamped) => self.pending.push(stamped),
            Message::Flush(answer) => self.waiting.push(answer),
        }
    }

    /// Tries to write all that is pending. Returns whether that went well.
    fn write(&mut self) -> bool {
        let shared = &self.shared;
        shared.busy_since.store(shared.clock.now().as_millis() + 1, Ordering::SeqCst);
        let outcome = self.try_write();
        let shared = &self.shared;
        shared.busy_since.store(0, Ordering::SeqCst);
        let before = shared.writable.swap(outcome.is_ok(), Ordering::SeqCst);
        match outcome {
            Ok(()) => {
                if !before {
                    tracing::info!(dir = %self.settings.dir.display(), "the journal is writable");
                }
                for answer in self.waiting.drain(..) {
                    let _ = answer.try_send(());
                }
                true
            }
            Err(error) => {
                if before || self.store.is_none() {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "nothing can be recorded");
                }
                // Opened anew next time: whatever broke may have broken the connection too.
                self.store = None;
                false
            }
        }
    }

    fn try_write(&mut self) -> Result<(), super::JournalError> {
        let store = match &mut self.store {
            Some(store) => store,
            None => self.store.insert(Store::open(&self.settings)?),
        };
        let lost = self.shared.lost.load(Ordering::SeqCst);
        if lost > 0 {
            store.note_gap(lost, "entries came faster than they could be written")?;
            self.shared.lost.fetch_sub(lost, Ordering::SeqCst);
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        store.append(&self.pending)?;
        let pictures = self.pending.iter().filter(|s| matches!(s.entry, Entry::Picture(_))).count();
        self.shared.pictures.fetch_sub(pictures, Ordering::SeqCst);
        let notes = self.pending.iter().filter(|s| matches!(s.entry, Entry::Note(_))).count();
        self.shared.notes.fetch_sub(notes, Ordering::SeqCst);
        self.shared.acknowledged.fetch_add(self.pending.len() as u64, Ordering::SeqCst);
        self.pending.clear();
        Ok(())
    }
}
