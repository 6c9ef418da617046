"""What a program in Python expects of the API server, by the unmodified client: python.py KUBECONFIG PART.

Fails with a traceback; prints nothing when all is well.
"""

import base64
import sys
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock

NAMESPACE = "default"
# Seconds until something that must happen counts as lost.
LOST = 60


def config_map(name, data=None, labels=None):
    metadata = client.V1ObjectMeta(name=name, labels=labels)
    return client.V1ConfigMap(metadata=metadata, data=data)


def refused(code, reason, call, *arguments, **named):
    """The call fails with this code and reason."""
    try:
        call(*arguments, **named)
    except ApiException as error:
        assert error.status == code, (error.status, error.body)
        assert f'"reason":"{reason}"' in error.body.replace(" ", ""), error.body
        return
    raise AssertionError(f"{call.__name__} was not refused")


def objects():
    core = client.CoreV1Api()
    assert client.VersionApi().get_code().minor == "36"
    names = [it.metadata.name for it in core.list_namespace().items]
    assert {"default", "kube-system"} <= set(names), names

    made = core.create_namespaced_config_map(NAMESPACE, config_map("a", {"k": "1"}))
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo, made
    refused(409, "AlreadyExists", core.create_namespaced_config_map, NAMESPACE, config_map("a"))
    refused(404, "NotFound", core.read_namespaced_config_map, "none", NAMESPACE)
    refused(422, "Invalid", core.create_namespaced_config_map, NAMESPACE, config_map("Not A Name"))

    # Every kind of patch.
    it = core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"s": "2"}})
    assert it.data == {"k": "1", "s": "2"}, it.data
    it = core.patch_namespaced_config_map("a", NAMESPACE, [{"op": "remove", "path": "/data/s"}])
    assert it.data == {"k": "1"}, it.data
    it = core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"k": None, "m": "3"}})
    assert it.data == {"m": "3"}, it.data
    dynamic_client = dynamic.DynamicClient(client.ApiClient())
    maps = dynamic_client.resources.get(api_version="v1", kind="ConfigMap")
    applied = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"applied": "4"}}
    it = dynamic_client.server_side_apply(maps, applied, name="a", namespace=NAMESPACE, field_manager="python")
    assert it.data.to_dict() == {"m": "3", "applied": "4"}, it
    managers = {(entry.manager, entry.operation) for entry in it.metadata.managedFields}
    assert ("python", "Apply") in managers, managers

    # Updates against what is no longer there.
    old = core.read_namespaced_config_map("a", NAMESPACE)
    core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"newer": "1"}})
    old.data["mine"] = "1"
    refused(409, "Conflict", core.replace_namespaced_config_map, "a", NAMESPACE, old)

    # Pages.
    for number in range(7):
        core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{number}", labels={"page": "yes"}))
    found, token = [], None
    while token != "":
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="page=yes", limit=3, _continue=token)
        found += [it.metadata.name for it in page.items]
        token = page.metadata._continue or ""
    assert found == [f"page-{number}" for number in range(7)], found
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="page")
    assert core.list_namespaced_config_map(NAMESPACE, label_selector="page").items == []

    # Scale, status, deletion with options.
    apps = client.AppsV1Api()
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"app": "web"}),
        spec=client.V1PodSpec(containers=[client.V1Container(name="web", image="nginx")]),
    )
    spec = client.V1DeploymentSpec(
        replicas=0, selector=client.V1LabelSelector(match_labels={"app": "web"}), template=template
    )
    made = apps.create_namespaced_deployment(
        NAMESPACE, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
    )
    assert made.spec.replicas == 0 and made.status.replicas is None, made
    scale = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 3}})
    assert scale.spec.replicas == 3, scale
    status = {"status": {"replicas": 3, "conditions": [{"type": "Available", "status": "True"}]}}
    made = apps.patch_namespaced_deployment_status("web", NAMESPACE, status)
    assert made.status.replicas == 3 and made.spec.replicas == 3, made
    options = client.V1DeleteOptions(propagation_policy="Foreground")
    apps.delete_namespaced_deployment("web", NAMESPACE, body=options)
    made = apps.read_namespaced_deployment("web", NAMESPACE)
    assert made.metadata.finalizers == ["foregroundDeletion"] and made.metadata.deletion_timestamp, made


def watches():
    core = client.CoreV1Api()
    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.create_namespaced_config_map(NAMESPACE, config_map("seen", {"k": "1"}, {"watch": "me"}))
    core.patch_namespaced_config_map("seen", NAMESPACE, {"data": {"k": "2"}})
    core.create_namespaced_config_map(NAMESPACE, config_map("unseen"))
    core.delete_namespaced_config_map("seen", NAMESPACE)
    seen = []
    stream = watch.Watch()
    for event in stream.stream(
        core.list_namespaced_config_map,
        NAMESPACE,
        label_selector="watch=me",
        resource_version=version,
        timeout_seconds=LOST,
    ):
        seen.append((event["type"], event["object"].metadata.name, event["object"].data["k"]))
        if event["type"] == "DELETED":
            stream.stop()
    assert seen == [("ADDED", "seen", "1"), ("MODIFIED", "seen", "2"), ("DELETED", "seen", "2")], seen


def elections():
    first, leading = threading.Event(), threading.Event()

    def candidate(identity, started):
        lock = ConfigMapLock("leader", NAMESPACE, identity)
        settings = electionconfig.Config(
            lock,
            lease_duration=17,
            renew_deadline=15,
            retry_period=1,
            onstarted_leading=started.set,
            onstopped_leading=None,
        )
        threading.Thread(target=leaderelection.LeaderElection(settings).run, daemon=True).start()

    candidate("one", first)
    assert first.wait(LOST)
    candidate("two", leading)
    record = client.CoreV1Api().read_namespaced_config_map("leader", NAMESPACE).metadata.annotations
    assert any('"one"' in text for text in record.values()), record
    assert not leading.is_set()

    # By a Lease: of two who want the same version, one gets it.
    leases = client.CoordinationV1Api()
    made = leases.create_namespaced_lease(NAMESPACE, client.V1Lease(metadata=client.V1ObjectMeta(name="lease")))
    claim = {"metadata": {"resourceVersion": made.metadata.resource_version}, "spec": {"holderIdentity": "one"}}
    held = leases.patch_namespaced_lease("lease", NAMESPACE, claim)
    assert held.spec.holder_identity == "one", held
    claim["spec"]["holderIdentity"] = "two"
    refused(409, "Conflict", leases.patch_namespaced_lease, "lease", NAMESPACE, claim)


def tokens():
    core, rbac = client.CoreV1Api(), client.RbacAuthorizationV1Api()
    metadata = client.V1ObjectMeta(name="robot")
    core.create_namespaced_service_account(NAMESPACE, client.V1ServiceAccount(metadata=metadata))
    rule = client.V1PolicyRule(api_groups=[""], resources=["configmaps"], verbs=["get", "list"])
    rbac.create_namespaced_role(NAMESPACE, client.V1Role(metadata=metadata, rules=[rule]))
    subject = client.RbacV1Subject(kind="ServiceAccount", name="robot", namespace=NAMESPACE)
    reference = client.V1RoleRef(api_group="rbac.authorization.k8s.io", kind="Role", name="robot")
    rbac.create_namespaced_role_binding(
        NAMESPACE, client.V1RoleBinding(metadata=metadata, role_ref=reference, subjects=[subject])
    )
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600))
    token = core.create_namespaced_service_account_token("robot", NAMESPACE, request).status.token
    payload = token.split(".")[1]
    claims = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode()
    assert '"sub":"system:serviceaccount:default:robot"' in claims, claims

    own = client.Configuration.get_default_copy()
    own.cert_file = own.key_file = None
    own.api_key = {"authorization": f"Bearer {token}"}
    robot = client.ApiClient(own)
    client.CoreV1Api(robot).list_namespaced_config_map(NAMESPACE)
    refused(403, "Forbidden", client.CoreV1Api(robot).list_namespaced_secret, NAMESPACE)
    me = client.AuthenticationV1Api(robot).create_self_subject_review(client.V1SelfSubjectReview())
    assert me.status.user_info.username == "system:serviceaccount:default:robot", me
    own.api_key = {"authorization": "Bearer nonsense"}
    refused(401, "Unauthorized", client.CoreV1Api(client.ApiClient(own)).list_namespaced_config_map, NAMESPACE)


def custom():
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1, "default": 2}}},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.example.org"},
        "spec": {
            "group": "example.org",
            "scope": "Namespaced",
            "names": {"plural": "boxes", "singular": "box", "kind": "Box"},
            "versions": [version],
        },
    }
    extensions = client.ApiextensionsV1Api()
    extensions.create_custom_resource_definition(definition)
    stream = watch.Watch()
    for event in stream.stream(
        extensions.list_custom_resource_definition,
        field_selector="metadata.name=boxes.example.org",
        timeout_seconds=LOST,
    ):
        conditions = (event["object"].status and event["object"].status.conditions) or []
        if any(it.type == "Established" and it.status == "True" for it in conditions):
            stream.stop()
    boxes = client.CustomObjectsApi()
    where = ("example.org", "v1", NAMESPACE, "boxes")
    box = {"apiVersion": "example.org/v1", "kind": "Box", "metadata": {"name": "a"}, "spec": {}}
    made = boxes.create_namespaced_custom_object(*where, box)
    assert made["spec"]["size"] == 2, made
    box["metadata"]["name"], box["spec"]["size"] = "b", 0
    refused(422, "Invalid", boxes.create_namespaced_custom_object, *where, box)
    made = boxes.patch_namespaced_custom_object(*where, "a", {"spec": {"size": 5}})
    assert made["spec"]["size"] == 5 and made["metadata"]["generation"] == 2, made
    made = boxes.patch_namespaced_custom_object_status(*where, "a", {"status": {"full": True}, "spec": {"size": 9}})
    assert made["spec"]["size"] == 5 and made["status"]["full"], made
    assert len(boxes.list_namespaced_custom_object(*where)["items"]) == 1
    boxes.delete_namespaced_custom_object(*where, "a")
    extensions.delete_custom_resource_definition("boxes.example.org")


if __name__ == "__main__":
    config.load_kube_config(config_file=sys.argv[1])
    parts = {it.__name__: it for it in [objects, watches, elections, tokens, custom]}
    parts[sys.argv[2]]()
    # Candidates go on for ever; their threads are daemons.
    sys.exit(0)
