//! Pending.
#![allow(missing_docs)]
#[derive(Default)]
pub struct Watcher;
impl Watcher {
    pub fn changed(&self) {}
    pub fn schemas(&self) -> impl Fn(&fairlead_schema::Resource) -> Option<serde_json::Value> + '_ {
        |_| None
    }
}
pub mod task {
    use crate::core::ApiServer;
    use std::sync::Arc;
    pub async fn load(_: &Arc<ApiServer>) {}
    pub async fn run(_: Arc<ApiServer>) {}
}
