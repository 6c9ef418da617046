//! Pending.
#![allow(missing_docs)]
use crate::{authn::User, objects::Objects, status::Result};
use fairlead_schema::Resource;
use serde_json::Value;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}
pub struct Attributes<'a> {
    pub operation: Operation,
    pub resource: &'a Resource,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub user: &'a User,
    pub dry_run: bool,
}
#[derive(Default)]
pub struct Chain;
impl Chain {
    pub fn builtin() -> Self {
        Self
    }
    pub fn mutate(&self, _: &Attributes<'_>, _: Option<&Value>, _: &mut Value, _: &dyn Objects) -> Result<Vec<String>> {
        Ok(vec![])
    }
    pub fn validate(
        &self,
        _: &Attributes<'_>,
        _: Option<&Value>,
        _: Option<&Value>,
        _: &dyn Objects,
    ) -> Result<Vec<String>> {
        Ok(vec![])
    }
}
