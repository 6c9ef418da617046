//! Which endpoints this node may use (KEP-2433, KEP-3015, KEP-4444, KEP-1669).
