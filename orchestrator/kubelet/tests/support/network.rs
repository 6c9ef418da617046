//! A network plugin for tests: a veth pair and an address for each pod, in the namespace of the test.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

const PLUGIN: &str = r#"#!/bin/sh
set -e
case "$CNI_COMMAND" in
ADD)
  if [ "$(basename "$0")" = loopback ]; then
    nsenter --net="$CNI_NETNS" ip link set lo up
    echo '{"cniVersion":"0.4.0","interfaces":[{"name":"lo","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"version":"4","address":"127.0.0.1/8","interface":0}]}'
    exit 0
  fi
  exec 9>"$(dirname "$0")/lock"
  flock 9
  n=$(cat "$(dirname "$0")/next" 2>/dev/null || echo 2)
  echo $((n + 1)) >"$(dirname "$0")/next"
  flock -u 9
  address="10.88.$((n / 250)).$((n % 250 + 1))"
  nsenter --net="$CNI_NETNS" ip -batch - <<END
link add eth0 type veth peer name v$n netns 1
addr add $address/32 dev eth0
link set eth0 up
route add 10.88.255.1 dev eth0 scope link
route add default via 10.88.255.1
END
  ip link set "v$n" up
  ip addr add 10.88.255.1/32 dev "v$n"
  ip route add "$address" dev "v$n"
  echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"version":"4","address":"'"$address"'/32","interface":0}]}'
  ;;
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
*) ;;
esac
"#;

const CONFIGURATION: &str = r#"{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "test"}]}"#;

/// Writes plugin and configuration.
pub(super) fn write(bin_dir: &Path, conf_dir: &Path) {
    fs::create_dir_all(bin_dir).unwrap();
    fs::create_dir_all(conf_dir).unwrap();
    for name in ["test", "loopback"] {
        let path = bin_dir.join(name);
        fs::write(&path, PLUGIN).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(conf_dir.join("10-test.conflist"), CONFIGURATION).unwrap();
}
