//! What a pod needs besides containers: directories, volumes, cgroups, objects.

use crate::{
    Config,
    cgroups::Cgroups,
    cri::v1::Mount,
    objects::{self, Cached, Objects},
    pod::{self, ContainerRef},
    podspec::{EnvObjects, Environment, Facts, Invalid, names},
    volumes::{SetUpFailed, Volumes},
};
use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use std::{collections::HashSet, net::IpAddr, path::PathBuf, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Makes it and takes it away.
pub struct Outside {
    log_dir: PathBuf,
    objects: Arc<dyn Objects>,
    volumes: Volumes,
    cgroups: Cgroups,
}

impl Outside {
    /// Below the directories of these settings.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn new(config: &Config, client: Client, facts: Arc<Facts>, cgroups: Cgroups) -> Result<Self> {
        let objects: Arc<dyn Objects> = Arc::new(Cached::new(client));
        let volumes =
            Volumes::new(&config.root_dir, facts, Arc::clone(&objects)).context("the directory of volumes")?;
        Ok(Self {
            log_dir: config.log_dir.clone(),
            objects,
            volumes,
            cgroups,
        })
    }

    /// Keeps volumes what they must be until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        self.volumes.run(stop).await;
    }

    /// What a sandbox cannot be made without.
    ///
    /// # Errors
    /// What the disk or the kernel refused.
    pub async fn before_sandbox(&self, pod: &Pod) -> Result<(), String> {
        let directory = names::pod_log_directory(&self.log_dir, pod);
        let made = tokio::fs::create_dir_all(&directory).await;
        made.map_err(|error| format!("{}: {error}", directory.display()))?;
        self.cgroup(pod).await
    }

    async fn cgroup(&self, pod: &Pod) -> Result<(), String> {
        let made = self.cgroups.create(pod).await;
        made.map_err(|error| format!("failed to ensure that the pod's cgroups exist and are limited: {error}"))
    }

    /// What containers cannot be made without.
    ///
    /// # Errors
    /// Volumes that cannot be had yet.
    pub async fn set_up(&self, pod: &Pod) -> Result<(), SetUpFailed> {
        // Also for a pod that ran before this process did: its class is weighed with it.
        if let Err(error) = self.cgroup(pod).await {
            tracing::warn!(pod = pod::full_name(pod), %error, "cgroups of a running pod");
        }
        self.volumes.set_up(pod).await.map(drop)
    }

    /// The object changed: files that show it follow.
    pub async fn update(&self, pod: &Pod) {
        self.volumes.update(pod).await;
    }

    /// Objects that a container's variables come from.
    ///
    /// # Errors
    /// One that cannot be read.
    pub async fn env_objects(&self, pod: &Pod, it: &ContainerRef) -> Result<EnvObjects, Invalid> {
        objects::env_objects(&*self.objects, pod, it).await
    }

    /// The mounts of a container.
    ///
    /// # Errors
    /// A volume that is not there.
    pub async fn mounts(
        &self,
        pod: &Pod,
        it: &ContainerRef,
        env: &Environment,
        restart_count: u32,
        pod_ips: &[IpAddr],
    ) -> Result<Vec<Mount>, Invalid> {
        self.volumes.mounts(pod, it, env, restart_count, pod_ips).await
    }

    /// Takes everything away. Idempotent.
    ///
    /// # Errors
    /// What the disk or the kernel refused.
    pub async fn tear_down(&self, pod: &Pod) -> Result<(), String> {
        // First, so that nothing can be writing any more.
        let ended = self.cgroups.remove(pod::uid(pod)).await;
        let done = self.volumes.tear_down(pod::uid(pod)).await;
        ended.map_err(|error| format!("error removing the cgroups: {error}"))?;
        done.map_err(|error| format!("error cleaning up the volumes: {error}"))
    }

    /// Takes away what pods that are gone left behind.
    pub async fn remove_leftovers(&self, known: &HashSet<String>) {
        let (volumes, cgroups) = tokio::join!(self.volumes.leftovers(), self.cgroups.leftovers());
        let mut left = HashSet::new();
        for found in [volumes, cgroups] {
            match found {
                Ok(found) => left.extend(found),
                Err(error) => tracing::warn!(%error, "what was left behind cannot be looked for"),
            }
        }
        for uid in left.difference(known) {
            if let Err(error) = self.cgroups.remove(uid).await {
                tracing::warn!(uid, %error, "cgroups of a pod that is gone cannot be removed");
            }
            if let Err(error) = self.volumes.tear_down(uid).await {
                tracing::warn!(uid, %error, "volumes of a pod that is gone cannot be removed");
            }
        }
    }
}
