//! A folder of YAML and JSON files as a source, followed with inotify.
