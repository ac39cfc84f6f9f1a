{{- define "keelson.schedulerConfig" -}}
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection:
  leaderElect: true
  resourceName: keelson-scheduler
  resourceNamespace: {{ .Release.Namespace }}
profiles:
  - schedulerName: keelson
  - schedulerName: stork
extenders:
  - urlPrefix: http://127.0.0.1:{{ .Values.ports.extender | int }}/scheduler
    filterVerb: filter
    prioritizeVerb: prioritize
    weight: 5
    nodeCacheCapable: true
    httpTimeout: 5s
    # Without an answer pods are placed as if their data were everywhere.
    ignorable: true
{{- end }}

{{- /* The release of the cluster, without what a vendor adds to it. */ -}}
{{- define "keelson.kubeVersion" -}}
{{- index (splitList "-" (index (splitList "+" .Capabilities.KubeVersion.Version) 0)) 0 -}}
{{- end }}
