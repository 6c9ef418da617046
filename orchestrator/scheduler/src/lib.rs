//! The scheduler: chooses a node for every pod that has none.
//!
//! ```text
//! watch → Scheduler { World, Queue } → Decision → act
//!   IO               pure                pure     IO
//! ```

mod act;
pub mod decide;
mod events;
pub mod filter;
pub mod hints;
pub mod metrics;
pub mod node;
pub mod pod;
pub mod preempt;
mod quantity;
pub mod queue;
pub mod resources;
mod run;
pub mod scheduler;
pub mod score;
pub mod selector;
pub mod verdict;
mod watch;
pub mod world;

pub use metrics::Metrics;
pub use run::run;

/// What a scheduler is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pods with another `spec.schedulerName` are somebody else's.
    pub name: String,
    /// Chooses among nodes that are equally good. Random if none is given.
    pub seed: Option<u64>,
    /// Counts what it does; [`Metrics::register`] shows it.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default-scheduler".to_owned(),
            seed: None,
            metrics: Metrics::default(),
        }
    }
}
