{{/* Where Ray's head keeps its state and routers share theirs: the Redis of this release, or another
one. */}}

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
        name: {{ default (include "crossdock.redisHost" .) $redis.auth.existingSecret | quote }}
        key: {{ $redis.auth.existingSecretKey | quote }}
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
        name: {{ .name | quote }}
        key: {{ .key | quote }}
  {{- end }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The router's URL of it; "" without one. */}}
{{- define "crossdock.store" -}}
{{- $external := .Values.redis.external }}
{{- $address := $external.address | default (printf "%s:6379" (include "crossdock.redisHost" .)) }}
{{- if or .Values.redis.enabled $external.address }}
{{- $scheme := hasPrefix "rediss://" $address | ternary "rediss" "redis" }}
{{- $host := regexReplaceAll "^rediss?://" $address "" }}
{{- $user := $external.username | default "" | empty | ternary "" (printf "%s@" ($external.username | default "" | urlquery)) }}
{{- printf "%s://%s%s/0?namespace=%s.%s" $scheme $user $host .Release.Namespace (include "crossdock.fullname" .) }}
{{- end }}
{{- end }}

{{/* Port of a Redis that `cluster` names; "" without one. */}}
{{- define "crossdock.ownStorePort" -}}
{{- $url := `^rediss?://(?:[^@/]*@)?(?:\[[^\]]*\]|[^/:?]*)(?::([0-9]+))?.*$` }}
{{- $store := .Values.cluster.store | default "" }}
{{- if regexMatch $url $store }}
{{- regexReplaceAll $url $store "${1}" | default "6379" }}
{{- end }}
{{- end }}

{{/* A store of the config's own has its password in its URL, or in `extraEnv`. */}}
{{- define "crossdock.storePassword" -}}
{{- $redis := .Values.redis }}
{{- if .Values.cluster.store }}
{{- else if $redis.enabled }}
- name: CROSSDOCK_STORE_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ default (include "crossdock.redisHost" .) $redis.auth.existingSecret | quote }}
      key: {{ $redis.auth.existingSecretKey | quote }}
{{- else if and $redis.external.address $redis.external.passwordSecret.name }}
- name: CROSSDOCK_STORE_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $redis.external.passwordSecret.name | quote }}
      key: {{ $redis.external.passwordSecret.key | quote }}
{{- end }}
{{- end }}
