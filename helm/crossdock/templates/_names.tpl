{{/* Names, labels and images. Names leave room for what KubeRay appends to that of a RayCluster. */}}

{{- define "crossdock.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "crossdock.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The head's Service as KubeRay names it. */}}
{{- define "crossdock.headAddress" -}}
{{ include "crossdock.fullname" . }}-head-svc.{{ .Release.Namespace }}.svc:6379
{{- end }}

{{- define "crossdock.controllerHost" -}}
{{ include "crossdock.fullname" . }}-controller.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "crossdock.serviceAccountName" -}}
{{- $own := .Values.serviceAccount.create | ternary (include "crossdock.fullname" .) "default" }}
{{- default $own .Values.serviceAccount.name }}
{{- end }}

{{- define "crossdock.image" -}}
{{- $kind := eq (include "crossdock.device" .) "cuda" | ternary "cuda" "cpu" }}
{{- .Values.image.repository }}:{{ default (printf "%s-%s" .Chart.AppVersion $kind) .Values.image.tag }}
{{- end }}

{{- define "crossdock.selectorLabels" -}}
app.kubernetes.io/name: {{ include "crossdock.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "crossdock.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "crossdock.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* What clients outside of Kubernetes reach by HTTP. Metrics name tenants and workers: Prometheus comes by the
Service. */}}
{{- define "crossdock.clientPaths" -}}
[/v1, /tokenize, /detokenize, /health, /ready]
{{- end }}
