#![allow(missing_docs, unreachable_pub)]
pub mod proto {
    use crate::Types;
    use serde_json::Value;
    pub fn decode(_: &Types, _: &[u8]) -> Result<Value, String> {
        Err("pending".into())
    }
}
pub mod read {
    use serde_json::Value;
    pub fn json(b: &[u8]) -> Result<(Value, Vec<String>), String> {
        Ok((serde_json::from_slice(b).map_err(|e| e.to_string())?, vec![]))
    }
    pub fn yaml(b: &[u8]) -> Result<(Value, Vec<String>), String> {
        Ok((serde_saphyr::from_slice(b).map_err(|e| e.to_string())?, vec![]))
    }
}
pub mod strict {
    use crate::{TypeId, Types};
    use serde_json::Value;
    pub fn check(_: &Types, _: TypeId, _: &Value) -> Vec<String> {
        vec![]
    }
    pub fn normalise(_: &Types, _: TypeId, _: &mut Value) -> Result<(), Vec<String>> {
        Ok(())
    }
}
pub mod openapi {
    use crate::Registry;
    use serde_json::{Value, json};
    #[derive(Default, Debug)]
    pub struct Documents;
    #[derive(Clone)]
    pub struct Document {
        pub hash: String,
        pub json: bytes::Bytes,
    }
    impl Documents {
        pub fn v3_index(&self, _: &Registry) -> Value {
            json!({})
        }
        pub fn v3(&self, _: &Registry, _: &str) -> Option<Document> {
            None
        }
        pub fn v2(&self, _: &Registry) -> Document {
            Document {
                hash: "".into(),
                json: bytes::Bytes::new(),
            }
        }
    }
}
pub mod validate {
    use crate::Resource;
    use serde_json::Value;
    pub struct Cause {
        pub field: String,
        pub reason: &'static str,
        pub message: String,
    }
    pub fn object(_: &Resource, _: &str, _: Option<&Value>, _: &Value) -> Vec<Cause> {
        vec![]
    }
}
