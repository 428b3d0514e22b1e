{{/* Certificates: of the cluster's processes, of the routers' doors, of operators and of who scrapes. */}}

{{/* The DNS name that the certificates of this release's processes have, and no others. */}}
{{- define "crossdock.memberName" -}}
{{ include "crossdock.fullname" . }}-workers.{{ .Release.Namespace }}
{{- end }}

{{- define "crossdock.operatorName" -}}
{{ include "crossdock.fullname" . }}-operator.{{ .Release.Namespace }}
{{- end }}

{{- define "crossdock.doorsSecret" -}}
{{ default (printf "%s-doors" (include "crossdock.fullname" .)) .Values.tls.doors.secretName }}
{{- end }}

{{/* The name of the routers in the cluster of Kubernetes. */}}
{{- define "crossdock.routerHost" -}}
{{ include "crossdock.fullname" . }}-router.{{ .Release.Namespace }}.svc
{{- end }}

{{/* `tls` of cluster.yaml; nothing if nothing is encrypted. */}}
{{- define "crossdock.tlsConfig" -}}
{{- $tls := dict }}
{{- if .Values.tls.enabled }}
{{- $folder := "/etc/crossdock-tls" }}
{{- $_ := set $tls "ca" (printf "%s/ca.crt" $folder) }}
{{- $_ := set $tls "cert" (printf "%s/tls.crt" $folder) }}
{{- $_ := set $tls "key" (printf "%s/tls.key" $folder) }}
{{- $_ := set $tls "name" (include "crossdock.memberName" .) }}
{{- $_ := set $tls "operator_name" (include "crossdock.operatorName" .) }}
{{- if .Values.tls.unencryptedNccl }}
{{- $_ := set $tls "unencrypted_nccl" true }}
{{- end }}
{{- end }}
{{- if .Values.tls.doors.enabled }}
{{- $_ := set $tls "doors" (include "crossdock.doorsConfig" . | fromYaml) }}
{{- end }}
{{- toYaml $tls }}
{{- end }}

{{/* `tls.doors`, which only routers have the files of, and decode workers that clients read from. */}}
{{- define "crossdock.doorsConfig" -}}
{{- $folder := "/etc/crossdock-doors" }}
{{- $doors := dict "cert" (printf "%s/tls.crt" $folder) "key" (printf "%s/tls.key" $folder) }}
{{- if .Values.tls.doors.clientCaSecret }}
{{- $_ := set $doors "client_ca" "/etc/crossdock-clients/ca.crt" }}
{{- end }}
{{- toYaml $doors }}
{{- end }}

{{- define "crossdock.tlsMount" -}}
{{- if .Values.tls.enabled }}
- name: tls
  mountPath: /etc/crossdock-tls
  readOnly: true
{{- end }}
{{- end }}

{{- define "crossdock.tlsVolume" -}}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "crossdock.fullname" . }}-workers
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "crossdock.doorsMount" -}}
{{- if .Values.tls.doors.enabled }}
- name: doors
  mountPath: /etc/crossdock-doors
  readOnly: true
{{- if .Values.tls.doors.clientCaSecret }}
- name: clients
  mountPath: /etc/crossdock-clients
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "crossdock.doorsVolume" -}}
{{- if .Values.tls.doors.enabled }}
- name: doors
  secret:
    secretName: {{ include "crossdock.doorsSecret" . | quote }}
    defaultMode: 0440
{{- with .Values.tls.doors.clientCaSecret }}
- name: clients
  secret:
    secretName: {{ . | quote }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}
{{- end }}

{{/* Whom `crossdock status --watch` trusts, which asks routers. A Secret without it harms nobody else. */}}
{{- define "crossdock.doorsCaMount" -}}
{{- if .Values.tls.doors.enabled }}
- name: doors
  mountPath: /etc/crossdock-doors
  readOnly: true
{{- end }}
{{- end }}

{{- define "crossdock.doorsCaVolume" -}}
{{- if .Values.tls.doors.enabled }}
- name: doors
  secret:
    secretName: {{ include "crossdock.doorsSecret" . | quote }}
    optional: true
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}

{{- define "crossdock.doorsCaEnv" -}}
{{- if .Values.tls.doors.enabled }}
- name: CROSSDOCK_TLS_DOOR_CA
  value: /etc/crossdock-doors/ca.crt
{{- end }}
{{- end }}

{{/* What the commands need that run in these pods: `crossdock status`, `drain-node`. */}}
{{- define "crossdock.operatorEnv" -}}
{{- if .Values.tls.enabled }}
- name: CROSSDOCK_TLS_CA
  value: /etc/crossdock-tls/ca.crt
- name: CROSSDOCK_TLS_CERT
  value: /etc/crossdock-tls/tls.crt
- name: CROSSDOCK_TLS_KEY
  value: /etc/crossdock-tls/tls.key
- name: CROSSDOCK_TLS_MEMBER_NAME
  value: {{ include "crossdock.memberName" . }}
{{- end }}
{{- with .Values.controller.tokenSecret }}
{{- if .name }}
- name: CROSSDOCK_ADMIN_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .name | quote }}
      key: {{ .key | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The controller's probes. Kubernetes asks by gRPC in the clear only. */}}
{{- define "crossdock.controllerProbe" -}}
{{- if .Values.tls.enabled }}
httpGet: {path: /health, port: crossdock-0, scheme: HTTPS}
{{- else }}
grpc: {port: 50052}
{{- end }}
{{- end }}

{{/* For a monitor of processes that ask for a certificate. */}}
{{- define "crossdock.scrapeTls" -}}
{{- if .Values.tls.enabled }}
{{- $secret := printf "%s-monitoring" (include "crossdock.fullname" .) }}
scheme: https
tlsConfig:
  ca: {secret: {name: {{ $secret }}, key: ca.crt}}
  cert: {secret: {name: {{ $secret }}, key: tls.crt}}
  keySecret: {name: {{ $secret }}, key: tls.key}
  serverName: {{ include "crossdock.memberName" . }}
{{- end }}
{{- end }}

{{/* Takes {root, name, dnsNames, usages, issuer}: a certificate in a Secret of that name. */}}
{{- define "crossdock.certificate" -}}
{{- $tls := .root.Values.tls }}
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ .name }}
  labels:
    {{- include "crossdock.labels" .root | nindent 4 }}
spec:
  secretName: {{ .name }}
  commonName: {{ .name }}
  dnsNames: {{ toJson .dnsNames }}
  usages: {{ toJson .usages }}
  duration: {{ $tls.duration | quote }}
  renewBefore: {{ $tls.renewBefore | quote }}
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  issuerRef:
    name: {{ default (printf "%s-authority" (include "crossdock.fullname" .root)) .issuer.name | quote }}
    kind: {{ .issuer.kind }}
    group: {{ .issuer.group | quote }}
{{- end }}
