{{/* Certificate and key for the pods that hold KV blocks, and for the controller, which checks them. */}}

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
