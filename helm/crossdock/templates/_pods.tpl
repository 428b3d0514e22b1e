{{/* What all pods have in common. */}}

{{/* Takes {root, values}: where a pod may run. */}}
{{- define "crossdock.placement" -}}
{{- $values := .values }}
{{- with default .root.Values.nodeSelector $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default .root.Values.tolerations $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default .root.Values.affinity $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Takes {constraints, labels}: each without a labelSelector of its own counts pods with `labels`. */}}
{{- define "crossdock.topologySpread" -}}
{{- $labels := .labels | fromYaml }}
{{- with .constraints }}
topologySpreadConstraints:
{{- range . }}
  - {{ merge (deepCopy .) (dict "labelSelector" (dict "matchLabels" $labels)) | toYaml | nindent 4 | trim }}
{{- end }}
{{- end }}
{{- end }}

{{- define "crossdock.podSpec" -}}
serviceAccountName: {{ include "crossdock.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "crossdock.container" -}}
image: {{ include "crossdock.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end }}

{{/* The root file system is read-only: Ray's sessions and caches go to /tmp. */}}
{{- define "crossdock.env" -}}
- name: HOME
  value: /tmp
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "crossdock.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{ include "crossdock.modelMount" . }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "crossdock.volumes" -}}
- name: tmp
  emptyDir: {}
{{ include "crossdock.modelVolume" . }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "crossdock.configMount" -}}
- name: config
  mountPath: /etc/crossdock
  readOnly: true
{{- end }}

{{- define "crossdock.configVolume" -}}
- name: config
  configMap:
    name: {{ include "crossdock.fullname" . }}-config
{{- end }}
