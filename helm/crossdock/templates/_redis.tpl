{{/* Where Ray's head keeps its state: the Redis of this release, or another one. */}}

{{- define "crossdock.redisHost" -}}
{{ .Release.Name }}-redis
{{- end }}

{{/* Port of another one, whose address may be a URL. */}}
{{- define "crossdock.redisPort" -}}
{{- $address := .Values.redis.external.address }}
{{- $port := regexFind ":[1-9][0-9]*$" $address | trimPrefix ":" }}
{{- if not $port }}
{{- fail (printf "redis.external.address = %s: must be host:port, with redis:// or rediss:// before it or not" $address) }}
{{- end }}
{{- $port }}
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
