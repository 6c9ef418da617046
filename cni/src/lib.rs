//! The node network: addresses, links and routes of pods, and the plugin that asks for them.
