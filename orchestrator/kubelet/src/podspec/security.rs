//! `securityContext` of pods and containers, and the namespaces that they share.

use super::{Cause, Facts, Invalid};
use crate::{
    cri::v1::{
        Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
        NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
    },
    pod::{self, ContainerRef},
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};
use std::path::{Component, Path};

/// Whom an image's processes run as, where the pod does not say: `Image.uid` or `Image.username` of CRI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    /// A number.
    Uid(i64),
    /// A name, which only the image's own `/etc/passwd` knows the number of.
    Name(String),
}

/// Parts of `/proc` and `/sys` that tell of the node or can hurt it. Source: `procMount: Default`.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Which namespaces a container shares with whom. `target` is the id of the container that an ephemeral one looks into.
fn namespaces(pod: &Pod, target: Option<&str>) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let flag = |it: Option<bool>| it == Some(true);
    let of_node = |it: Option<bool>| {
        if flag(it) {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        }
    };
    let pid = if flag(spec.and_then(|it| it.host_pid)) {
        NamespaceMode::Node
    } else if flag(spec.and_then(|it| it.share_process_namespace)) {
        NamespaceMode::Pod
    } else if target.is_some() {
        NamespaceMode::Target
    } else {
        NamespaceMode::Container
    };
    NamespaceOption {
        network: of_node(spec.and_then(|it| it.host_network)).into(),
        ipc: of_node(spec.and_then(|it| it.host_ipc)).into(),
        pid: pid.into(),
        target_id: if pid == NamespaceMode::Target {
            target.unwrap_or_default().to_owned()
        } else {
            String::new()
        },
        userns_options: None,
    }
}

pub(super) fn of_sandbox(pod: &Pod, facts: &Facts) -> Result<LinuxSandboxSecurityContext, Invalid> {
    let spec = pod.spec.as_ref();
    if spec.and_then(|it| it.host_users) == Some(false) {
        let cause = "user namespaces are not supported by this kubelet; leave hostUsers unset".to_owned();
        return Err(Invalid::new(pod, None, "hostUsers", Cause::Unsupported(cause)));
    }
    let context = spec.and_then(|it| it.security_context.as_ref());
    let user = context.and_then(|it| it.run_as_user);
    let privileged = ContainerRef::all(pod)
        .iter()
        .filter_map(|it| it.spec(pod))
        .any(|it| is_privileged(&it));
    let selinux = context.and_then(|it| it.se_linux_options.as_ref());
    Ok(LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None)),
        selinux_options: selinux.map(se_linux),
        run_as_user: user.map(|value| Int64Value { value }),
        // CRI knows no group without a user.
        run_as_group: user
            .and(context.and_then(|it| it.run_as_group))
            .map(|value| Int64Value { value }),
        supplemental_groups: groups(context),
        supplemental_groups_policy: groups_policy(pod, context, facts)?,
        privileged,
        seccomp: Some(profile(ProfileType::RuntimeDefault)),
        ..LinuxSandboxSecurityContext::default()
    })
}

pub(super) fn of_container(
    pod: &Pod,
    reference: &ContainerRef,
    container: &Container,
    image_user: Option<&ImageUser>,
    target: Option<&str>,
    facts: &Facts,
) -> Result<LinuxContainerSecurityContext, Invalid> {
    let of_pod = pod.spec.as_ref().and_then(|it| it.security_context.as_ref());
    let own = container.security_context.as_ref();
    let invalid =
        |field: &str, cause: Cause| Invalid::new(pod, Some(&reference.name), format!("securityContext.{field}"), cause);
    let privileged = is_privileged(container);
    let user = run_as_user(own, of_pod);
    must_not_be_root(pod, reference, own, of_pod, user, image_user)
        .map_err(|it| invalid("runAsNonRoot", Cause::RunsAsRoot(it)))?;
    let (uid, username) = match (user, image_user) {
        (Some(uid), _) => (Some(uid), String::new()),
        (None, Some(ImageUser::Uid(uid))) => (Some(*uid), String::new()),
        (None, Some(ImageUser::Name(name))) => (None, name.clone()),
        (None, None) => (None, String::new()),
    };
    let known = uid.is_some() || !username.is_empty();
    let mut group = own
        .and_then(|it| it.run_as_group)
        .or_else(|| of_pod.and_then(|it| it.run_as_group));
    let uid = uid.or_else(|| (group.is_some() && !known).then_some(0));
    if uid.is_none() && username.is_empty() {
        group = None;
    }
    let seccomp = own
        .and_then(|it| it.seccomp_profile.as_ref())
        .or_else(|| of_pod?.seccomp_profile.as_ref());
    let seccomp = if privileged { None } else { seccomp };
    let apparmor = own
        .and_then(|it| it.app_armor_profile.as_ref())
        .or_else(|| of_pod?.app_armor_profile.as_ref());
    let selinux = own
        .and_then(|it| it.se_linux_options.as_ref())
        .or_else(|| of_pod?.se_linux_options.as_ref());
    let capabilities = own.and_then(|it| it.capabilities.as_ref()).map(|it| Capability {
        add_capabilities: it.add.clone().unwrap_or_default(),
        drop_capabilities: it.drop.clone().unwrap_or_default(),
        add_ambient_capabilities: Vec::new(),
    });
    let unmasked = own.and_then(|it| it.proc_mount.as_deref()) == Some("Unmasked");
    let paths = |all: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            all.iter().map(|it| (*it).to_owned()).collect()
        }
    };
    Ok(LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(namespaces(pod, target)),
        selinux_options: selinux.map(se_linux),
        run_as_user: uid.map(|value| Int64Value { value }),
        run_as_group: group.map(|value| Int64Value { value }),
        run_as_username: username,
        readonly_rootfs: own.and_then(|it| it.read_only_root_filesystem) == Some(true),
        supplemental_groups: groups(of_pod),
        supplemental_groups_policy: groups_policy(pod, of_pod, facts)?,
        no_new_privs: own.and_then(|it| it.allow_privilege_escalation) == Some(false),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        seccomp: Some(seccomp_profile(seccomp, facts).map_err(|it| invalid("seccompProfile", it))?),
        apparmor: apparmor.map(app_armor),
        ..LinuxContainerSecurityContext::default()
    })
}

pub(super) fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().and_then(|it| it.privileged) == Some(true)
}

fn run_as_user(own: Option<&SecurityContext>, of_pod: Option<&PodSecurityContext>) -> Option<i64> {
    own.and_then(|it| it.run_as_user).or_else(|| of_pod?.run_as_user)
}

/// The one user that all containers of a pod run as, if their spec says so: whom files with tokens may belong to.
pub(crate) fn common_user(pod: &Pod) -> Option<i64> {
    let of_pod = pod.spec.as_ref().and_then(|it| it.security_context.as_ref());
    let all = ContainerRef::all(pod);
    let mut users = all
        .iter()
        .filter_map(|it| it.spec(pod))
        .map(|it| run_as_user(it.security_context.as_ref(), of_pod));
    let first = users.next()??;
    users.all(|it| it == Some(first)).then_some(first)
}

/// `spec.securityContext.fsGroup`.
pub(crate) fn fs_group(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref()?.security_context.as_ref()?.fs_group
}

fn must_not_be_root(
    pod: &Pod,
    reference: &ContainerRef,
    own: Option<&SecurityContext>,
    of_pod: Option<&PodSecurityContext>,
    user: Option<i64>,
    image_user: Option<&ImageUser>,
) -> Result<(), String> {
    if own
        .and_then(|it| it.run_as_non_root)
        .or_else(|| of_pod?.run_as_non_root)
        != Some(true)
    {
        return Ok(());
    }
    let at = format!(
        "(pod: \"{}_{}({})\", container: {})",
        pod::name(pod),
        pod::namespace(pod),
        pod::uid(pod),
        reference.name
    );
    match (user, image_user) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {at}")),
        (Some(_), _) | (None, Some(ImageUser::Uid(1..))) => Ok(()),
        (None, Some(ImageUser::Name(name))) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {at}"
        )),
        (None, _) => Err(format!("container has runAsNonRoot and image will run as root {at}")),
    }
}

fn groups(of_pod: Option<&PodSecurityContext>) -> Vec<i64> {
    let Some(context) = of_pod else { return Vec::new() };
    context
        .fs_group
        .into_iter()
        .chain(context.supplemental_groups.iter().flatten().copied())
        .collect()
}

fn groups_policy(pod: &Pod, of_pod: Option<&PodSecurityContext>, facts: &Facts) -> Result<i32, Invalid> {
    let strict = of_pod.and_then(|it| it.supplemental_groups_policy.as_deref()) == Some("Strict");
    if strict && !facts.supplemental_groups_policy {
        // Merged groups would be more than the pod allows.
        let cause = "SupplementalGroupsPolicy=Strict is not supported by the container runtime of this node".to_owned();
        let field = "securityContext.supplementalGroupsPolicy";
        return Err(Invalid::new(pod, None, field, Cause::Unsupported(cause)));
    }
    let policy = if strict {
        SupplementalGroupsPolicy::Strict
    } else {
        SupplementalGroupsPolicy::Merge
    };
    Ok(policy.into())
}

fn profile(profile_type: ProfileType) -> SecurityProfile {
    SecurityProfile {
        profile_type: profile_type.into(),
        localhost_ref: String::new(),
    }
}

fn seccomp_profile(wanted: Option<&SeccompProfile>, facts: &Facts) -> Result<SecurityProfile, Cause> {
    let Some(wanted) = wanted else {
        return Ok(profile(ProfileType::Unconfined));
    };
    Ok(match wanted.type_.as_str() {
        "RuntimeDefault" => profile(ProfileType::RuntimeDefault),
        "Localhost" => {
            let file = Path::new(wanted.localhost_profile.as_deref().unwrap_or_default());
            let below = file.components().all(|it| matches!(it, Component::Normal(_)));
            if !below || file.as_os_str().is_empty() {
                let text = format!(
                    "localhostProfile {:?} must name a file below the kubelet's directory",
                    file
                );
                return Err(Cause::Malformed(text));
            }
            let file = facts.seccomp_root.join(file).display().to_string();
            SecurityProfile {
                profile_type: ProfileType::Localhost.into(),
                localhost_ref: file,
            }
        }
        "Unconfined" => profile(ProfileType::Unconfined),
        other => return Err(Cause::Malformed(format!("unknown seccomp profile type {other}"))),
    })
}

fn app_armor(wanted: &AppArmorProfile) -> SecurityProfile {
    match wanted.type_.as_str() {
        "Localhost" => SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: wanted.localhost_profile.clone().unwrap_or_default(),
        },
        "Unconfined" => profile(ProfileType::Unconfined),
        _ => profile(ProfileType::RuntimeDefault),
    }
}

fn se_linux(it: &SELinuxOptions) -> SeLinuxOption {
    SeLinuxOption {
        user: it.user.clone().unwrap_or_default(),
        role: it.role.clone().unwrap_or_default(),
        r#type: it.type_.clone().unwrap_or_default(),
        level: it.level.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::{Value, json};

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn context(spec: Value, image: Option<ImageUser>) -> Result<LinuxContainerSecurityContext, Invalid> {
        let pod = pod_of(spec);
        let reference = ContainerRef::all(&pod).remove(0);
        let container = reference.spec(&pod).unwrap();
        let facts = Facts {
            seccomp_root: "/seccomp".into(),
            ..Facts::default()
        };
        of_container(&pod, &reference, &container, image.as_ref(), None, &facts)
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn own(context: Value) -> Value {
        json!({"containers": [{"name": "app", "securityContext": context}]})
    }

    fn number(it: Option<Int64Value>) -> Option<i64> {
        it.map(|it| it.value)
    }

    #[test]
    fn the_container_goes_before_the_pod_and_the_pod_before_the_image() {
        let users = |spec: Value, image: Option<ImageUser>| {
            let it = context(spec, image).unwrap();
            (number(it.run_as_user), number(it.run_as_group), it.run_as_username)
        };
        let pod = json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4, 5]});
        let both =
            json!({"securityContext": pod, "containers": [{"name": "app", "securityContext": {"runAsUser": 9}}]});
        assert_eq!(
            users(both.clone(), Some(ImageUser::Uid(7))),
            (Some(9), Some(2), String::new())
        );
        assert_eq!(context(both, None).unwrap().supplemental_groups, [3, 4, 5]);
        assert_eq!(
            users(own(json!({})), Some(ImageUser::Uid(7))),
            (Some(7), None, String::new())
        );
        assert_eq!(
            users(own(json!({})), Some(ImageUser::Name("www".into()))),
            (None, None, "www".into())
        );
        assert_eq!(
            users(own(json!({"runAsGroup": 5})), None),
            (Some(0), Some(5), String::new())
        );
        let group = own(json!({"runAsGroup": 5}));
        assert_eq!(
            users(group, Some(ImageUser::Name("www".into()))),
            (None, Some(5), "www".into())
        );
        assert_eq!(users(own(json!({})), None), (None, None, String::new()));
    }

    #[test]
    fn who_must_not_be_root_is_not() {
        let at = "(pod: \"web_shop(11111111-2222-3333-4444-555555555555)\", container: app)";
        let message = |spec: Value, image: Option<ImageUser>| context(spec, image).err().map(|it| it.message());
        let must = own(json!({"runAsNonRoot": true}));
        let root = Some(format!("container has runAsNonRoot and image will run as root {at}"));
        assert_eq!(message(must.clone(), None), root);
        assert_eq!(message(must.clone(), Some(ImageUser::Uid(0))), root);
        assert_eq!(message(must.clone(), Some(ImageUser::Uid(7))), None);
        assert_eq!(
            message(must, Some(ImageUser::Name("www".into()))),
            Some(format!(
                "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root {at}"
            ))
        );
        let zero = own(json!({"runAsNonRoot": true, "runAsUser": 0}));
        assert_eq!(
            message(zero, None),
            Some(format!("container's runAsUser breaks non-root policy {at}"))
        );
        let lifted = json!({"securityContext": {"runAsNonRoot": true},
            "containers": [{"name": "app", "securityContext": {"runAsNonRoot": false}}]});
        assert_eq!(message(lifted, None), None);
    }

    #[test]
    fn rights_are_given_and_taken() {
        let it = context(
            own(json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false})),
            None,
        )
        .unwrap();
        let capabilities = it.capabilities.unwrap();
        assert_eq!(
            (capabilities.add_capabilities, capabilities.drop_capabilities),
            (vec!["NET_ADMIN".into()], vec!["ALL".into()])
        );
        assert!(it.readonly_rootfs && it.no_new_privs && !it.privileged);
        assert!(it.masked_paths.contains(&"/proc/kcore".to_owned()));
        let it = context(
            own(json!({"privileged": true, "seccompProfile": {"type": "RuntimeDefault"}})),
            None,
        )
        .unwrap();
        assert!(it.privileged && !it.no_new_privs);
        assert_eq!(it.seccomp.unwrap().profile_type, ProfileType::Unconfined as i32);
        let it = context(own(json!({"procMount": "Unmasked"})), None).unwrap();
        assert!(it.masked_paths.is_empty() && it.readonly_paths.is_empty());
    }

    #[test]
    fn profiles_are_files_below_the_kubelets_directory() {
        let seccomp =
            |profile: Value| context(own(json!({"seccompProfile": profile})), None).map(|it| it.seccomp.unwrap());
        let it = seccomp(json!({"type": "Localhost", "localhostProfile": "a/b.json"})).unwrap();
        assert_eq!(
            (it.profile_type, it.localhost_ref.as_str()),
            (ProfileType::Localhost as i32, "/seccomp/a/b.json")
        );
        assert_eq!(
            seccomp(json!({"type": "RuntimeDefault"})).unwrap().profile_type,
            ProfileType::RuntimeDefault as i32
        );
        for bad in ["../x", "/etc/x", "", "a/../../b"] {
            assert!(
                seccomp(json!({"type": "Localhost", "localhostProfile": bad})).is_err(),
                "{bad}"
            );
        }
        let of_pod =
            json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}, "containers": [{"name": "a"}]});
        assert_eq!(
            context(of_pod, None).unwrap().seccomp.unwrap().profile_type,
            ProfileType::RuntimeDefault as i32
        );
    }

    #[test]
    fn namespaces_are_the_containers_unless_shared() {
        let modes = |spec: Value, target: Option<&str>| {
            let it = namespaces(&pod_of(spec), target);
            let name = |it: i32| NamespaceMode::try_from(it).unwrap().as_str_name();
            (name(it.network), name(it.pid), name(it.ipc), it.target_id)
        };
        let none = String::new;
        assert_eq!(
            modes(json!({"containers": []}), None),
            ("POD", "CONTAINER", "POD", none())
        );
        let host = json!({"containers": [], "hostNetwork": true, "hostPID": true, "hostIPC": true});
        assert_eq!(modes(host.clone(), None), ("NODE", "NODE", "NODE", none()));
        assert_eq!(modes(host, Some("x")).1, "NODE");
        let shared = json!({"containers": [], "shareProcessNamespace": true});
        assert_eq!(modes(shared, None), ("POD", "POD", "POD", none()));
        assert_eq!(
            modes(json!({"containers": []}), Some("x")),
            ("POD", "TARGET", "POD", "x".into())
        );
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let strict = json!({"containers": [{"name": "a"}], "securityContext": {"supplementalGroupsPolicy": "Strict"}});
        let pod = pod_of(strict);
        assert!(of_sandbox(&pod, &Facts::default()).is_err());
        let able = Facts {
            supplemental_groups_policy: true,
            ..Facts::default()
        };
        assert_eq!(of_sandbox(&pod, &able).unwrap().supplemental_groups_policy, 1);
        let users = pod_of(json!({"containers": [{"name": "a"}], "hostUsers": false}));
        assert_eq!(of_sandbox(&users, &able).unwrap_err().field.as_ref(), "hostUsers");
    }

    #[test]
    fn a_sandbox_is_privileged_if_a_container_is() {
        let pod = pod_of(
            json!({"containers": [{"name": "a"}, {"name": "b", "securityContext": {"privileged": true}}],
            "securityContext": {"runAsGroup": 5}}),
        );
        let it = of_sandbox(&pod, &Facts::default()).unwrap();
        assert!(it.privileged);
        assert_eq!(it.run_as_group, None, "no group without a user");
    }

    #[test]
    fn tokens_belong_to_the_one_user_of_all() {
        let user = |pod: Value, containers: &[Option<i64>]| {
            let containers: Vec<_> = containers
                .iter()
                .enumerate()
                .map(|(i, user)| json!({"name": format!("c{i}"), "securityContext": {"runAsUser": user}}))
                .collect();
            common_user(&pod_of(json!({"securityContext": pod, "containers": containers})))
        };
        assert_eq!(user(json!({"runAsUser": 5}), &[None, Some(5)]), Some(5));
        assert_eq!(user(json!({}), &[Some(6), Some(6)]), Some(6));
        assert_eq!(user(json!({}), &[Some(6), None]), None);
        assert_eq!(user(json!({"runAsUser": 5}), &[None, Some(6)]), None);
        assert_eq!(user(json!({}), &[]), None);
    }
}
