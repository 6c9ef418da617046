//! What a pod needs besides containers: directories, volumes, cgroups, objects.

use crate::{
    Config,
    cri::v1::Mount,
    pod::ContainerRef,
    podspec::{EnvObjects, Environment, names},
};
use k8s_openapi::api::core::v1::Pod;
use std::{collections::HashSet, net::IpAddr, path::PathBuf};

/// Makes it and takes it away.
#[derive(Debug)]
pub struct Outside {
    log_dir: PathBuf,
}

impl Outside {
    /// Below the directories of these settings.
    pub fn new(config: &Config) -> Self {
        Self {
            log_dir: config.log_dir.clone(),
        }
    }

    /// What a sandbox cannot be made without.
    ///
    /// # Errors
    /// What the disk refused.
    pub async fn before_sandbox(&self, pod: &Pod) -> Result<(), String> {
        let directory = names::pod_log_directory(&self.log_dir, pod);
        let made = tokio::fs::create_dir_all(&directory).await;
        made.map_err(|error| format!("{}: {error}", directory.display()))
    }

    /// What containers cannot be made without.
    ///
    /// # Errors
    /// A volume that cannot be had yet.
    pub async fn set_up(&self, _pod: &Pod) -> Result<(), String> {
        Ok(())
    }

    /// Objects that a container's variables come from.
    ///
    /// # Errors
    /// One that cannot be read.
    pub async fn env_objects(&self, _pod: &Pod, _it: &ContainerRef) -> Result<EnvObjects, String> {
        Ok(EnvObjects::default())
    }

    /// The mounts of a container.
    ///
    /// # Errors
    /// A volume that is not there.
    pub async fn mounts(
        &self,
        _pod: &Pod,
        _it: &ContainerRef,
        _env: &Environment,
        _restart_count: u32,
        _pod_ips: &[IpAddr],
    ) -> Result<Vec<Mount>, String> {
        Ok(Vec::new())
    }

    /// Takes everything away. Idempotent.
    ///
    /// # Errors
    /// What the disk refused.
    pub async fn tear_down(&self, _pod: &Pod) -> Result<(), String> {
        Ok(())
    }

    /// Takes away what pods that are gone left behind.
    pub async fn remove_leftovers(&self, _known: &HashSet<String>) {}
}
