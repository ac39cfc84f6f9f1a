{{- define "keelson.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "keelson.labels" -}}
app.kubernetes.io/name: keelson
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "keelson.selector" -}}
app.kubernetes.io/name: keelson
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "keelson.drivers" -}}
csi.keelson.io
{{- if .Values.csi.aliases.pureCSI }} pure-csi{{ end }}
{{- if .Values.csi.aliases.portworx }} pxd.portworx.com{{ end }}
{{- end }}

{{- define "keelson.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "keelson.isDefaultClass" -}}
{{- $asked := toString .Values.storageClasses.default -}}
{{- $default := eq $asked "true" -}}
{{- if eq $asked "auto" -}}
{{- $default = true -}}
{{- range (lookup "storage.k8s.io/v1" "StorageClass" "" "").items -}}
{{- $notes := .metadata.annotations | default dict -}}
{{- if and (ne .metadata.name "keelson") (eq (get $notes "storageclass.kubernetes.io/is-default-class") "true") -}}
{{- $default = false -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $default -}}
{{- end }}

{{- define "keelson.nodeEnv" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: NODE_ADDRESS
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
{{- end }}
