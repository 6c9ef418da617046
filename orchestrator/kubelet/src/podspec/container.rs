//! [`container`]: one start of one container.

use super::{Cause, Environment, Facts, ImageUser, Invalid, expand, names, resources, security};
use crate::{
    cri::v1::{ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig, Mount, Signal},
    pod::ContainerRef,
};
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;

/// What a container is started with besides its spec.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The image as the runtime knows it: its id or digest, as pulling it returned.
    pub image: String,
    /// Whom the image runs as; `None` is root.
    pub image_user: Option<ImageUser>,
    /// Its variables: [`super::environment`].
    pub env: Environment,
    /// All its mounts: `volumes::Volumes::mounts`.
    pub mounts: Vec<Mount>,
    /// How often it was started before: the restart count, and the number of its log.
    pub attempt: u32,
    /// Id of the container that an ephemeral one looks into (`targetContainerName`).
    pub target_id: Option<String>,
}

/// The configuration of one start of a container.
///
/// # Errors
/// A user that must not be root and is, a profile that names no file, a container that the pod does not have.
pub fn container(
    pod: &Pod,
    reference: &ContainerRef,
    inputs: &Inputs,
    facts: &Facts,
) -> Result<ContainerConfig, Invalid> {
    let Some(spec) = reference.spec(pod) else {
        let cause = Cause::Malformed("the pod has no such container".to_owned());
        return Err(Invalid::new(pod, Some(&reference.name), "name", cause));
    };
    if spec.volume_devices.as_ref().is_some_and(|it| !it.is_empty()) {
        let cause = Cause::Unsupported("block volumes are not supported by this kubelet".to_owned());
        return Err(Invalid::new(pod, Some(&reference.name), "volumeDevices", cause));
    }
    let env: HashMap<&str, &str> = inputs.env.by_name();
    let expanded = |all: &Option<Vec<String>>| {
        let all = all
            .iter()
            .flatten()
            .map(|it| expand(it, |name| env.get(name).copied()).text);
        all.collect::<Vec<_>>()
    };
    let context = security::of_container(
        pod,
        reference,
        &spec,
        inputs.image_user.as_ref(),
        inputs.target_id.as_deref(),
        facts,
    )?;
    let variable = |(key, value): &(String, String)| KeyValue {
        key: key.clone(),
        value: value.clone().into_bytes(),
    };
    let stop_signal = spec.lifecycle.as_ref().and_then(|it| it.stop_signal.as_deref());
    let stop_signal = stop_signal
        .and_then(Signal::from_str_name)
        .unwrap_or(Signal::RuntimeDefault);
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: reference.name.clone(),
            attempt: inputs.attempt,
        }),
        image: Some(ImageSpec {
            image: inputs.image.clone(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command: expanded(&spec.command),
        args: expanded(&spec.args),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: inputs.env.variables.iter().map(variable).collect(),
        mounts: inputs.mounts.clone(),
        labels: names::container_labels(pod, reference),
        annotations: names::container_annotations(pod, &spec, inputs.attempt),
        log_path: names::container_log(&reference.name, inputs.attempt),
        stdin: spec.stdin == Some(true),
        stdin_once: spec.stdin_once == Some(true),
        tty: spec.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::of_container(pod, reference, &spec, facts)),
            security_context: Some(context),
        }),
        stop_signal: stop_signal.into(),
        ..ContainerConfig::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::json;

    #[test]
    fn a_container_is_what_its_spec_says() {
        let pod = pod_of(json!({"containers": [{
            "name": "app", "image": "web:1", "command": ["/bin/$(WHAT)", "$$(WHAT)"], "args": ["$(NONE)"],
            "workingDir": "/srv", "stdin": true, "tty": true, "lifecycle": {"stopSignal": "SIGUSR1"},
        }]}));
        let reference = ContainerRef::named(&pod, "app").unwrap();
        let inputs = Inputs {
            image: "sha256:1".into(),
            env: Environment {
                variables: vec![("WHAT".into(), "sh".into())],
                skipped: vec![],
            },
            mounts: vec![Mount {
                container_path: "/data".into(),
                ..Mount::default()
            }],
            attempt: 3,
            ..Inputs::default()
        };
        let it = container(&pod, &reference, &inputs, &Facts::default()).unwrap();
        assert_eq!(
            (it.command.join(" "), it.args.join(" ")),
            ("/bin/sh $(WHAT)".into(), "$(NONE)".into())
        );
        assert_eq!((it.working_dir.as_str(), it.log_path.as_str()), ("/srv", "app/3.log"));
        assert_eq!((it.stdin, it.stdin_once, it.tty), (true, false, true));
        assert_eq!(it.metadata.unwrap().attempt, 3);
        assert_eq!(it.image.unwrap().user_specified_image, "web:1");
        assert_eq!(
            it.envs,
            [KeyValue {
                key: "WHAT".into(),
                value: "sh".into()
            }]
        );
        assert_eq!(it.mounts.len(), 1);
        assert_eq!(it.stop_signal, Signal::Sigusr1 as i32);
        assert_eq!(names::Made::from_annotations(&it.annotations).restart_count, 3);
    }

    #[test]
    fn what_the_pod_does_not_have_is_refused() {
        let pod =
            pod_of(json!({"containers": [{"name": "app", "volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]}]}));
        let mut reference = ContainerRef::named(&pod, "app").unwrap();
        let error = container(&pod, &reference, &Inputs::default(), &Facts::default()).unwrap_err();
        assert_eq!(error.field.as_ref(), "volumeDevices");
        assert!(!error.may_pass());
        reference.name = "other".into();
        assert!(container(&pod, &reference, &Inputs::default(), &Facts::default()).is_err());
    }
}
