//! Work on numbered items in parallel, results handed over in order, memory bounded.
//!
//! Workers claim items in ascending order and may run at most `window` items ahead of the sink, so
//! a slow sink holds the workers instead of piling up results.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many threads to use, and the pool they come from.
pub struct Threads {
    pool: Option<rayon::ThreadPool>,
    count: usize,
}

impl Threads {
    /// `count` threads; 0 means one for each core.
    pub fn new(count: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let count = match count {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n.min(1024),
        };
        let pool = match count {
            1 => None,
            n => Some(rayon::ThreadPoolBuilder::new().num_threads(n).build()?),
        };
        Ok(Self { pool, count })
    }

    /// The calling thread alone.
    pub const fn one() -> Self {
        Self {
            pool: None,
            count: 1,
        }
    }

    /// One more, for work that ends with a write: while one worker waits for the disk the others keep all cores
    /// busy. `None` for a single thread, which is what was asked for then.
    pub fn and_one(&self) -> Option<Self> {
        Self::new(self.count.checked_add(1).filter(|n| *n > 2)?).ok()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads")
            .field("count", &self.count)
            .finish()
    }
}

struct Shared<T> {
    next: usize,
    done: usize,
    stop: bool,
    ready: BTreeMap<usize, T>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in a worker is passed on by the pool; the data behind the lock stays consistent.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks the work as stopped if a worker panics, so that nobody waits for its result.
struct StopOnPanic<'a, T>(&'a Mutex<Shared<T>>, &'a Condvar);

impl<T> Drop for StopOnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(self.0).stop = true;
            self.1.notify_all();
        }
    }
}

/// Calls `work` for `0..count` on all threads and `sink` for each result in order.
///
/// `scratch` makes one reusable buffer per worker. `sink` ends the work early by `Break`.
pub fn ordered<S, T: Send>(
    threads: &Threads,
    count: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(usize, &mut S) -> T + Sync,
    mut sink: impl FnMut(usize, T) -> ControlFlow<()>,
) {
    let workers = threads.count.min(count);
    let Some(pool) = threads.pool.as_ref().filter(|_| workers > 1) else {
        let mut s = scratch();
        for i in 0..count {
            let result = work(i, &mut s);
            if sink(i, result).is_break() {
                return;
            }
        }
        return;
    };
    let window = workers + 2;
    let shared = Mutex::new(Shared {
        next: 0,
        done: 0,
        stop: false,
        ready: BTreeMap::new(),
    });
    let changed = Condvar::new();
    pool.in_place_scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|_| {
                let _guard = StopOnPanic(&shared, &changed);
                let mut s = scratch();
                loop {
                    let i = {
                        let mut state = lock(&shared);
                        while !state.stop && state.next < count && state.next >= state.done + window
                        {
                            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                        }
                        if state.stop || state.next >= count {
                            return;
                        }
                        let i = state.next;
                        state.next += 1;
                        i
                    };
                    let result = work(i, &mut s);
                    lock(&shared).ready.insert(i, result);
                    changed.notify_all();
                }
            });
        }
        for i in 0..count {
            let result = {
                let mut state = lock(&shared);
                loop {
                    if let Some(result) = state.ready.remove(&i) {
                        break Some(result);
                    }
                    if state.stop {
                        break None;
                    }
                    state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            let Some(result) = result else { return };
            let flow = sink(i, result);
            let mut state = lock(&shared);
            state.done = i + 1;
            state.stop |= flow.is_break();
            changed.notify_all();
            if state.stop {
                return;
            }
        }
    });
}

/// As [`ordered`], for items that are made one after the other by `produce`, which hands each to the
/// function it is given and stops when that says `Break`.
///
/// The workers are threads of their own, so `produce` may use the pool.
pub fn fed<I: Send, T: Send>(
    threads: &Threads,
    work: impl Fn(I) -> T + Sync,
    mut sink: impl FnMut(T) -> ControlFlow<()>,
    produce: impl FnOnce(&mut dyn FnMut(I) -> ControlFlow<()>),
) {
    if threads.count <= 1 {
        produce(&mut |item| sink(work(item)));
        return;
    }
    let window = threads.count + 2;
    let (items, queue) = sync_channel::<(usize, I)>(window);
    let (done, results) = channel::<(usize, T)>();
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..threads.count {
            let (done, queue, work) = (done.clone(), &queue, &work);
            scope.spawn(move || {
                loop {
                    let next = lock(queue).recv();
                    let Ok((i, item)) = next else { return };
                    if done.send((i, work(item))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut ready: BTreeMap<usize, T> = BTreeMap::new();
        let (mut fed, mut sunk) = (0usize, 0usize);
        let mut over = false;
        let mut take = |result: (usize, T), sunk: &mut usize| {
            ready.insert(result.0, result.1);
            while let Some(next) = ready.remove(sunk) {
                *sunk += 1;
                over = over || sink(next).is_break();
            }
            if over {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        produce(&mut |item| {
            while fed - sunk >= window {
                // Every worker gone means that one has panicked, which the scope passes on.
                let Ok(result) = results.recv() else {
                    return ControlFlow::Break(());
                };
                take(result, &mut sunk)?;
            }
            if items.send((fed, item)).is_err() {
                return ControlFlow::Break(());
            }
            fed += 1;
            while let Ok(result) = results.try_recv() {
                take(result, &mut sunk)?;
            }
            ControlFlow::Continue(())
        });
        drop(items);
        for result in results {
            if take(result, &mut sunk).is_break() {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_on_any_number_of_threads() {
        for n in [1, 2, 5] {
            let threads = Threads::new(n).unwrap();
            let mut got = Vec::new();
            ordered(
                &threads,
                100,
                || 0u64,
                |i, calls| {
                    *calls += 1;
                    i * 2
                },
                |i, r| {
                    got.push((i, r));
                    ControlFlow::Continue(())
                },
            );
            assert_eq!(got, (0..100).map(|i| (i, i * 2)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_sink_can_stop_the_work() {
        let threads = Threads::new(3).unwrap();
        let mut got = 0;
        ordered(
            &threads,
            1_000_000,
            || (),
            |i, ()| i,
            |_, _| {
                got += 1;
                if got == 10 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        );
        assert_eq!(got, 10);
    }

    #[test]
    fn what_is_fed_comes_out_in_order_and_can_be_stopped() {
        for n in [1, 2, 5] {
            let threads = Threads::new(n).unwrap();
            for stop_at in [usize::MAX, 10] {
                let (mut got, mut offered) = (Vec::new(), 0);
                fed(
                    &threads,
                    |i: usize| i * 2,
                    |r| {
                        got.push(r);
                        if got.len() == stop_at {
                            ControlFlow::Break(())
                        } else {
                            ControlFlow::Continue(())
                        }
                    },
                    |feed| {
                        for i in 0..1000 {
                            offered += 1;
                            if feed(i).is_break() {
                                break;
                            }
                        }
                    },
                );
                let want = stop_at.min(1000);
                assert_eq!(got, (0..want).map(|i| i * 2).collect::<Vec<_>>());
                assert!(offered <= want + n + 3, "{offered}");
            }
        }
    }
}
