//! How much of the machine the page may take: connections, their lifetime, requests.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use pawlatch_core::units::Uptime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Connections at a time, and of one address.
const MAX_CONNECTIONS: usize = 64;
const MAX_OF_ONE_ADDRESS: usize = 24;
/// How long a connection may last, whatever it does; browsers come back by themselves.
const CONNECTION_LASTS: Duration = Duration::from_secs(3_600);
/// How long a client may leave what was sent to it unread.
const STALLED_AFTER: Duration = Duration::from_secs(20);
/// Requests of one address: at once, and for as long as it goes on, per second.
const BURST: f64 = 150.0;
const PER_SECOND: f64 = 30.0;
/// Addresses whose requests are counted.
const MAX_ADDRESSES: usize = 1_024;

/// Lets in a limited number of connections and ends those that last too long.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_address: usize,
}

impl Seats {
    /// `shared` if everybody comes from one address, that of a proxy.
    pub(super) fn new(shared: bool) -> Self {
        let per_address = if shared { MAX_CONNECTIONS } else { MAX_OF_ONE_ADDRESS };
        Self { taken: Arc::default(), per_address }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, address: IpAddr) -> Option<Seat> {
        let mut taken = self.lock();
        let all: usize = taken.values().sum();
        let mine = taken.get(&address).copied().unwrap_or(0);
        if all >= MAX_CONNECTIONS || mine >= self.per_address {
            return None;
        }
        taken.insert(address, mine + 1);
        drop(taken);
        Some(Seat { seats: self.clone(), address })
    }
}

/// A place among the connections; dropping it gives it back.
#[derive(Debug)]
struct Seat {
    seats: Seats,
    address: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(mine) = taken.get_mut(&self.address) {
            *mine -= 1;
            if *mine == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

impl<S> Accept<TcpStream, S> for Seats {
    type Stream = Seated;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Seated, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let seated = stream.peer_addr().and_then(|peer| {
            let full = || io::Error::other("too many connections");
            let seat = self.take(peer.ip()).ok_or_else(full)?;
            stream.set_nodelay(true)?;
            let ends = Box::pin(sleep(CONNECTION_LASTS));
            Ok((Seated { stream, _seat: seat, ends, stalled: None }, service))
        });
        std::future::ready(seated)
    }
}

/// A connection with a seat and an end.
#[derive(Debug)]
pub(super) struct Seated {
    stream: TcpStream,
    _seat: Seat,
    ends: Pin<Box<Sleep>>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Seated {
    fn over(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let stalled = self.stalled.as_mut().is_some_and(|s| s.as_mut().poll(context).is_ready());
        if stalled || self.ends.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.over(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        if wrote.is_pending() {
            self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED_AFTER)));
            self.over(context)?;
        } else {
            self.stalled = None;
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Counts requests by address: a bucket that leaks.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<IpAddr, (f64, Uptime)>>);

impl Rates {
    /// Whether one more request of `address` is served at `now`.
    pub(super) fn allow(&self, address: IpAddr, now: Uptime) -> bool {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= MAX_ADDRESSES {
            let full = Duration::from_secs_f64(BURST / PER_SECOND);
            rates.retain(|_, (_, at)| now.since(*at) < full);
            if rates.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let (left, at) = rates.entry(address).or_insert((BURST, now));
        *left = (*left + now.since(*at).as_secs_f64() * PER_SECOND).min(BURST);
        *at = now;
        if *left < 1.0 {
            return false;
        }
        *left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.to_be_bytes().into())
    }

    #[test]
    fn a_flood_is_served_at_the_allowed_rate_and_nobody_else_pays() {
        let rates = Rates::default();
        let flood = |ms| rates.allow(address(1), Uptime::from_millis(ms));
        let served = (0..10_000).filter(|ms| flood(*ms)).count() as f64;
        assert!((served - (BURST + 10.0 * PER_SECOND)).abs() <= 2.0, "{served}");
        assert!(rates.allow(address(2), Uptime::from_millis(10_000)));
        for n in 0..5_000 {
            rates.allow(address(n), Uptime::from_millis(10_000));
        }
        assert!(rates.0.lock().unwrap().len() <= MAX_ADDRESSES);
    }

    #[test]
    fn seats_are_limited_and_given_back() {
        let seats = Seats::new(false);
        let mine: Vec<_> = (0..MAX_CONNECTIONS).filter_map(|_| seats.take(address(1))).collect();
        assert_eq!(mine.len(), MAX_OF_ONE_ADDRESS);
        let others: Vec<_> = (2..200).filter_map(|n| seats.take(address(n))).collect();
        assert_eq!(mine.len() + others.len(), MAX_CONNECTIONS);
        drop((mine, others));
        assert!(seats.take(address(1)).is_some());
    }
}
