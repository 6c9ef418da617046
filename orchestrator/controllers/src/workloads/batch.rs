//! Many creations: first one, then twice as many, so that what is refused is refused a few times only.

use crate::frame::Fault;
use futures::{StreamExt as _, stream};

/// Requests of one key that are under way at a time.
const PARALLEL: usize = 16;

/// Runs `create` for each thing in batches that double; after a batch with a failure no further one begins. Gives how
/// many succeeded and the first failure.
pub(crate) async fn slow_start<T, F, R>(things: Vec<T>, create: F) -> (usize, Option<Fault>)
where
    F: Fn(T) -> R,
    R: Future<Output = Result<(), Fault>>,
{
    let mut left = things.into_iter();
    let mut size = 1;
    let mut done = 0;
    loop {
        let batch: Vec<T> = left.by_ref().take(size).collect();
        if batch.is_empty() {
            return (done, None);
        }
        let mut results = stream::iter(batch.into_iter().map(&create)).buffer_unordered(PARALLEL);
        let mut failure = None;
        while let Some(result) = results.next().await {
            match result {
                Ok(()) => done += 1,
                Err(fault) => failure = failure.or(Some(fault)),
            }
        }
        if failure.is_some() {
            return (done, failure);
        }
        size *= 2;
    }
}

/// Runs `act` for all things, some at a time; the first failure, after all were tried.
pub(crate) async fn each<T, F, R>(things: impl IntoIterator<Item = T>, act: F) -> Result<(), Fault>
where
    F: Fn(T) -> R,
    R: Future<Output = Result<(), Fault>>,
{
    let things: Vec<_> = things.into_iter().map(act).collect();
    let mut results = stream::iter(things).buffer_unordered(PARALLEL);
    let mut outcome = Ok(());
    while let Some(result) = results.next().await {
        outcome = outcome.and(result);
    }
    outcome
}
