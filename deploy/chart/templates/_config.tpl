{{- define "keelson.config" -}}
clusterName: {{ .Values.clusterName }}
dataDir: {{ .Values.dataDir }}
runDir: /run/keelson
apiPort: {{ .Values.ports.api | int }}
enginePort: {{ .Values.ports.engine | int }}
etcdClientPort: {{ .Values.ports.etcdClient | int }}
etcdPeerPort: {{ .Values.ports.etcdPeer | int }}
log:
  level: {{ .Values.log.level }}
  format: {{ .Values.log.format }}
engine:
  shards: {{ .Values.engine.shards | int }}
  encryption: {{ .Values.engine.encryption }}
{{- with .Values.encryption }}
{{- if .provider }}
{{- if and (eq .provider "file") (not .secretName) }}
{{- fail "encryption.secretName: not set, but encryption.provider is file; set it to the Secret with the wrapping keys" }}
{{- end }}
{{- if and (eq .provider "kms") (not .kms.socketDir) }}
{{- fail "encryption.kms.socketDir: not set, but encryption.provider is kms; set it to the directory of the KMS plugin's socket" }}
{{- end }}
encryption:
  provider: {{ .provider }}
  {{- if .secretName }}
  keyDir: /etc/keelson-keys
  {{- end }}
  {{- if .kms.socketDir }}
  kms:
    endpoint: unix://{{ .kms.socketDir }}/{{ .kms.socket }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .Values.metadata.endpoints }}
metadata:
  endpoints:
    {{- toYaml . | nindent 4 }}
  {{- if $.Values.metadata.secretName }}
  caFile: /etc/keelson-metadata/ca.crt
  certFile: /etc/keelson-metadata/tls.crt
  keyFile: /etc/keelson-metadata/tls.key
  {{- end }}
{{- end }}
csi:
  socket: {{ .Values.kubeletDir }}/plugins/csi.keelson.io/csi.sock
  registrationDir: {{ .Values.kubeletDir }}/plugins_registry
  maxVolumes: {{ .Values.csi.maxVolumes | int }}
  {{- if or .Values.csi.aliases.pureCSI .Values.csi.aliases.portworx }}
  aliases:
    {{- if .Values.csi.aliases.pureCSI }}
    - driver: pure-csi
      socket: {{ .Values.kubeletDir }}/plugins/pure-csi/csi.sock
    {{- end }}
    {{- if .Values.csi.aliases.portworx }}
    - driver: pxd.portworx.com
      socket: {{ .Values.kubeletDir }}/plugins/pxd.portworx.com/csi.sock
    {{- end }}
  {{- end }}
{{- if or .Values.disks.all .Values.disks.rules .Values.disks.fileSize }}
disks:
  {{- if .Values.disks.all }}
  - all: true
  {{- end }}
  {{- with .Values.disks.rules }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if .Values.disks.fileSize }}
  - file: {{ .Values.dataDir }}/pool.img
    size: {{ .Values.disks.fileSize }}
  {{- end }}
{{- end }}
kube:
  enabled: true
  namespace: {{ .Release.Namespace }}
  failover: {{ .Values.failover.enabled }}
  guardImage: {{ include "keelson.image" . | quote }}
  extender: {{ if .Values.scheduler.enabled }}127.0.0.1:{{ .Values.ports.extender | int }}{{ else }}""{{ end }}
  kubeletDir: {{ .Values.kubeletDir }}
membership:
  namespace: {{ .Release.Namespace }}
  name: keelson
  metadataMembers: {{ .Values.metadata.members | int }}
{{- end }}
