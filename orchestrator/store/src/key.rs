//! [`Key`]: where an object is stored.

use std::{fmt, sync::Arc};

/// Place of one object: resource prefix, namespace, name. Written as `/registry/<group>/<plural>[/<namespace>]/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `<group>/<plural>`, the group of the core being `core`; as in `fairlead_schema::resource::Storage::prefix`.
    pub prefix: Arc<str>,
    /// Empty for what belongs to the cluster.
    pub namespace: Arc<str>,
    /// Never empty.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/registry/{}/", self.prefix)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}
