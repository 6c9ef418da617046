//! The tasks that make up a cluster or a node: none of them ends before it is told to.

use anyhow::{Result, anyhow};
use futures::FutureExt as _;
use tokio::task::JoinHandle;

/// Tasks by the names that people know them by.
pub(crate) type Parts = Vec<(&'static str, JoinHandle<Result<()>>)>;

/// Waits until one ends by itself, and says which and why.
pub(crate) async fn ended(parts: &mut Parts) -> anyhow::Error {
    let ends = parts
        .iter_mut()
        .map(|(name, task)| async move { (*name, task.await) }.boxed());
    let ((name, result), index, _) = futures::future::select_all(ends).await;
    parts.remove(index);
    match result {
        Ok(Ok(())) => anyhow!("the {name} ended"),
        Ok(Err(error)) => error.context(format!("the {name} ended")),
        Err(error) => anyhow!("the {name} panicked: {error}"),
    }
}

/// Waits until all have ended, after they were told to.
pub(crate) async fn finish(parts: Parts) {
    for (name, task) in parts {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "the {name} ended with an error"),
            Err(error) => tracing::error!(%error, "the {name} panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_ends_is_named() {
        let forever = || tokio::spawn(std::future::pending::<Result<()>>());
        let mut parts: Parts = vec![
            ("one", forever()),
            ("two", tokio::spawn(async { anyhow::bail!("no more") })),
        ];
        let error = format!("{:#}", ended(&mut parts).await);
        assert_eq!(error, "the two ended: no more");
        assert_eq!(parts.len(), 1);
    }
}
