{{/* Where Ray's head keeps its state: the Redis of this release, or another one. */}}

{{- define "crossdock.redisHost" -}}
{{ .Release.Name }}-redis
{{- end }}

{{- define "crossdock.faultTolerance" -}}
{{- $redis := .Values.redis }}
{{- if and $redis.enabled $redis.external.address }}
{{- fail "redis.external.address: leave it empty, or set redis.enabled to false: only one is used" }}
{{- end }}
{{- if or $redis.enabled $redis.external.address }}
gcsFaultToleranceOptions:
  redisAddress: {{ $redis.external.address | default (printf "%s:6379" (include "crossdock.redisHost" .)) | quote }}
  {{- if $redis.enabled }}
  redisPassword:
    valueFrom:
      secretKeyRef:
        name: {{ default (include "crossdock.redisHost" .) $redis.auth.existingSecret }}
        key: {{ $redis.auth.existingSecretKey }}
  {{- else }}
  {{- with $redis.external.username }}
  redisUsername:
    value: {{ . | quote }}
  {{- end }}
  {{- with $redis.external.passwordSecret }}
  {{- if .name }}
  redisPassword:
    valueFrom:
      secretKeyRef:
        name: {{ .name }}
        key: {{ .key }}
  {{- end }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}
