//! A whole cluster in one process, driven by the real kubectl, with real containers. Needs root, containerd, the agent
//! (`FAIRLEAD_BIN`, or `fairlead` beside this executable) and the test image (`cargo xtask image test`).

mod first;
