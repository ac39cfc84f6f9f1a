package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestInTreeClass is the class of testdata/000 for the in-tree plugin, with three copies, as the cluster's default, and the claim and the pod of testdata/001 on it.
// Then a PersistentVolume of that plugin's own kind.
func TestInTreeClass(t *testing.T) {
	s := newSpace(t, "in-tree", 5*time.Minute)
	s.useClass("000-px-repl3-sc.yaml", "px-repl3-sc")
	s.in("annotate", "storageclass", "px-repl3-sc", "storageclass.kubernetes.io/is-default-class=true")
	s.applyFile("001-claim.yaml")
	s.applyFile("001-pod.yaml")
	s.ready(90*time.Second, "mypod")
	v, err := s.volume(s.volumeOf("myclaim"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(v.Columns[0].Members); n != 3 {
		t.Errorf("repl: 3 made a volume with %d copies", n)
	}
	s.exec("mypod", "sh", "-c", "echo by the course >/var/www/html/index.html; sync -f /var/www/html")
	if got := s.exec("mypod", "cat", "/var/www/html/index.html"); got != "by the course\n" {
		t.Errorf("the page has %q", got)
	}

	if err := s.keelson(s.ctx, nil, "volume", "create", "in-tree-volume", "--size", "200Mi"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.deleteVolume("in-tree-volume") })
	s.apply(`apiVersion: v1
kind: PersistentVolume
metadata: {name: in-tree}
spec:
  capacity: {storage: 200Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  claimRef: {namespace: ` + s.name + `, name: bound}
  portworxVolume: {volumeID: in-tree-volume, fsType: ext4}
`)
	t.Cleanup(func() { s.deletePV("in-tree") })
	s.apply(claim("bound", `""`, "200Mi") + user("reads", "bound"))
	s.ready(90*time.Second, "reads")
	s.exec("reads", "sh", "-c", "echo there >/data/file; sync -f /data")
	if v, err := s.volume("in-tree-volume"); err != nil || v.Node == "" {
		t.Errorf("the pod writes somewhere else: %+v, %v", v, err)
	}
	s.in("delete", "pod", "reads", "mypod", "--grace-period=1")
	s.in("delete", "pvc", "--all")
}

// TestCloudManifests are testdata/004, of a cloud's disks: a class that keeps what it made, with parameters that mean nothing here, and a claim and a pod on
// it; and a PersistentVolume that names a disk that is there.
func TestCloudManifests(t *testing.T) {
	s := newSpace(t, "cloud", 5*time.Minute)
	s.applyFile("004-class.yaml")
	t.Cleanup(func() { s.deleteClass("standard") })
	s.applyFile("004-claim.yaml")
	s.applyFile("004-pod.yaml")
	s.ready(90*time.Second, "test-ebs")
	if mount := s.exec("test-ebs", "grep", " /test-ebs ", "/proc/mounts"); !strings.Contains(mount, " ext4 ") {
		t.Errorf("not ext4: %s", mount)
	}
	s.exec("test-ebs", "sh", "-c", "echo hello >/test-ebs/index.html; sync -f /test-ebs")
	if got := s.exec("test-ebs", "wget", "-q", "-O", "-", "http://127.0.0.1/test-ebs/index.html"); got != "hello\n" {
		t.Errorf("the server serves %q", got)
	}
	s.event("PersistentVolumeClaim", "myclaim", "iopsPerGB")
	volume := s.volumeOf("myclaim")
	s.in("delete", "pod", "test-ebs", "--grace-period=1")
	s.in("delete", "pvc", "myclaim")
	s.await(30*time.Second, "a PersistentVolume that is kept", func() error {
		out, err := s.Field(s.ctx, "{.status.phase}", "pv", volume)
		if err == nil && out != "Released" {
			err = fmt.Errorf("it is %s", out)
		}
		return err
	})
	s.deletePV(volume)
	if _, err := s.volume(volume); err != nil {
		t.Errorf("the class says Retain: %v", err)
	}
	s.deleteVolume(volume)

	if err := s.keelson(s.ctx, nil, "volume", "create", "vol-f16a04ba", "--size", "10Gi"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.deleteVolume("vol-f16a04ba") })
	s.in("apply", "-f", "testdata/004-pv.yaml")
	t.Cleanup(func() { s.deletePV("pv0001") })
	s.apply(claim("any", `""`, "10Gi") + user("finds", "any"))
	s.ready(90*time.Second, "finds")
	if got := s.volumeOf("any"); got != "pv0001" {
		t.Errorf("the claim has %s", got)
	}
	s.in("delete", "pod", "finds", "--grace-period=1")
	s.in("delete", "pvc", "any")
}

func (s *space) deletePV(name string) {
	ctx, cancel := cleanupContext()
	defer cancel()
	if _, err := s.Kubectl(ctx, "delete", "pv", name, "--ignore-not-found", "--timeout=30s"); err != nil {
		s.t.Error(err)
	}
}

// mariaDB is the database of the article of testdata/003: a block volume, and a container that prepares what the next one expects.
const mariaDB = `apiVersion: apps/v1
kind: Deployment
metadata: {name: mariadb}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: mariadb}}
  template:
    metadata: {labels: {app: mariadb}}
    spec:
      initContainers:
      - name: prepare
        image: busybox:1.36
        command: [sh, -c, "chown 999:999 /var/lib/mysql && chmod 770 /var/lib/mysql"]
        volumeMounts: [{name: data, mountPath: /var/lib/mysql}]
      containers:
      - name: mariadb
        image: mariadb:10
        imagePullPolicy: Never
        securityContext: {runAsUser: 999, runAsGroup: 999}
        volumeMounts: [{name: data, mountPath: /var/lib/mysql}]
      volumes:
      - name: data
        persistentVolumeClaim: {claimName: mariadb}
`

// TestSharedScratchSpace is what testdata/003's article describes; it prints no manifests. Two pods of a Deployment that share a directory: on one node, as
// ReadWriteMany is refused, which says so. And a database whose directory a container prepares that runs before it.
func TestSharedScratchSpace(t *testing.T) {
	s := newSpace(t, "shared", 6*time.Minute)
	s.apply(strings.Replace(claim("many", "pure-file", "1Gi"), "ReadWriteOnce", "ReadWriteMany", 1) + user("many", "many"))
	s.event("PersistentVolumeClaim", "many", "Ask for ReadWriteOnce")

	s.apply(claim("scratch", "pure-file", "1Gi") + `apiVersion: apps/v1
kind: Deployment
metadata: {name: scratch}
spec:
  replicas: 2
  selector: {matchLabels: {app: scratch}}
  template:
    metadata: {labels: {app: scratch}}
    spec:
      affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: scratch}}}]}}
      terminationGracePeriodSeconds: 1
      containers:
      - name: c
        image: busybox:1.36
        command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1; done"]
        volumeMounts: [{name: v, mountPath: /scratch}]
      volumes: [{name: v, persistentVolumeClaim: {claimName: scratch}}]
`)
	s.in("rollout", "status", "deployment/scratch", "--timeout=90s")
	s.in("scale", "deployment", "scratch", "--replicas=3")
	s.in("rollout", "status", "deployment/scratch", "--timeout=90s")
	pods := strings.Fields(s.in("get", "pods", "-l", "app=scratch", "-o", "jsonpath={.items[*].metadata.name}"))
	s.exec(pods[0], "sh", "-c", "echo shared >/scratch/file")
	for _, p := range pods[1:] {
		if got := s.exec(p, "cat", "/scratch/file"); got != "shared\n" {
			t.Errorf("%s sees %q", p, got)
		}
	}
	s.database()
}

// database runs the article's MariaDB, and moves it to another node.
func (s *space) database() {
	s.t.Helper()
	s.apply(claim("mariadb", "pure-block", "1Gi") + mariaDB)
	s.in("rollout", "status", "deployment/mariadb", "--timeout=120s")
	sql := func(text string) string {
		return strings.TrimSpace(s.in("exec", "deployment/mariadb", "--", "mariadb", "-uroot", "-N", "-e", text))
	}
	s.await(60*time.Second, "MariaDB", func() error {
		_, err := s.Kubectl(s.ctx, "-n", s.name, "exec", "deployment/mariadb", "--", "mariadb", "-uroot", "-e", "select 1")
		return err
	})
	sql("create database cloud; create table cloud.files (name varchar(40) primary key); insert into cloud.files values ('a'), ('b')")
	node := s.in("get", "pods", "-l", "app=mariadb", "-o", "jsonpath={.items[0].spec.nodeName}")
	s.in("cordon", node)
	s.t.Cleanup(func() { s.uncordon(node) })
	s.in("delete", "pod", "-l", "app=mariadb")
	s.in("rollout", "status", "deployment/mariadb", "--timeout=120s")
	s.await(60*time.Second, "MariaDB elsewhere", func() error {
		out, err := s.Kubectl(s.ctx, "-n", s.name, "exec", "deployment/mariadb", "--", "mariadb", "-uroot", "-N", "-e", "select count(*) from cloud.files")
		if err == nil && strings.TrimSpace(out) != "2" {
			err = fmt.Errorf("it has %q rows", out)
		}
		return err
	})
	if on := s.in("get", "pods", "-l", "app=mariadb", "-o", "jsonpath={.items[0].spec.nodeName}"); on == node {
		s.t.Errorf("it is still on %s", node)
	}
	s.uncordon(node)
}
