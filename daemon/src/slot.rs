//! A channel that holds one value: the newest wins, nothing queues, nothing grows.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    closed: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    /// A thread that panicked cannot have left a value half written: a value is moved in whole.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// The end that puts values in. Dropping it closes the slot.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// The end that takes values out. Dropping it closes the slot.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

/// What the receiver finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T> {
    /// The newest value since the last one taken.
    Value(T),
    /// Nothing new.
    Nothing,
    /// Nothing new, and nothing will ever come: the sender is gone.
    Closed,
}

/// An empty slot.
pub fn slot<T>() -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { value: None, closed: false });
    let shared = Arc::new(Shared { state, changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Puts `value` in, in place of one that was not taken. Returns whether anybody is there to
    /// take it.
    pub fn put(&self, value: T) -> bool {
        let mut state = self.0.lock();
        if state.closed {
            return false;
        }
        state.value = Some(value);
        drop(state);
        self.0.changed.notify_all();
        true
    }

    /// Whether nobody is there any more to take a value.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    /// Waits until the value put in last was taken, the receiver is gone, or `patience` is over.
    pub fn wait_taken(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut state = self.0.lock();
        while state.value.is_some() && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<T> Receiver<T> {
    /// Takes the value, waiting at most `patience` for one.
    pub fn take(&self, patience: Duration) -> Taken<T> {
        let until = Instant::now() + patience;
        let mut state = self.0.lock();
        loop {
            if let Some(value) = state.value.take() {
                drop(state);
                self.0.changed.notify_all();
                return Taken::Value(value);
            }
            if state.closed {
                return Taken::Closed;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Nothing;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_value_wins() {
        let (sender, receiver) = slot();
        assert_eq!(receiver.take(Duration::ZERO), Taken::Nothing);
        assert!(sender.put(1) && sender.put(2));
        assert_eq!(receiver.take(Duration::ZERO), Taken::Value(2));
        assert_eq!(receiver.take(Duration::ZERO), Taken::Nothing);
    }

    #[test]
    fn the_last_value_survives_its_sender_and_then_the_slot_is_closed() {
        let (sender, receiver) = slot();
        sender.put(1);
        drop(sender);
        assert_eq!(receiver.take(Duration::from_secs(9)), Taken::Value(1));
        assert_eq!(receiver.take(Duration::from_secs(9)), Taken::Closed);
    }

    #[test]
    fn a_panicking_thread_closes_its_slot() {
        let (sender, receiver) = slot::<u8>();
        let thread = std::thread::spawn(move || {
            let _held = sender;
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(thread.join().is_err());
        assert_eq!(receiver.take(Duration::from_secs(9)), Taken::Closed);
    }

    #[test]
    fn a_sender_without_receiver_is_told() {
        let (sender, receiver) = slot();
        drop(receiver);
        assert!(!sender.put(1));
        sender.wait_taken(Duration::from_secs(9));
    }
}
